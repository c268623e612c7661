"""Progress with images a second, time left and peak memory."""

import resource
import sys
import time
from collections.abc import Callable

import torch

from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.process import beat
from aim_lightning.utils.progress import ProgressBar


class Throughput:
    """Context manager: a `ProgressBar` on the first process, signs of life for the watchdog, and the speed afterwards.

    Args:
        what: word before the bar.
        total: images of all processes.
        ranks: the first one's count stands for all, whose shares are equal up to a block.
    """

    def __init__(self, what: str, total: int, ranks: ProcessGroup) -> None:
        self.what, self.total, self.ranks, self.done = what, total, ranks, 0
        self.report = ProgressBar(what, total, "images", shown=ranks.is_rank_zero)

    def __enter__(self) -> "Throughput":
        reset_peak_memory()
        self.start = time.perf_counter()
        self.report.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self.start
        self.report.__exit__()

    def advance(self, images: int) -> None:
        """So many images are done on this process."""
        self.done += images
        beat(f"{self.what}, after {self.done} images")
        everywhere = min(self.total, self.done * self.ranks.world_size)
        self.report.advance(everywhere - self.report.done, f"peak {peak_memory():.1f} GiB")

    def performance(self) -> dict[str, float]:
        """Seconds, images a second of all processes, and the largest peak memory; every process must call it."""
        images = sum(self.ranks.gather(self.done))
        seconds = max(self.ranks.gather(self.seconds))
        memory = max(self.ranks.gather(peak_memory()))
        speed = images / seconds if seconds else 0.0
        return {
            "images": images,
            "seconds": round(seconds, 2),
            "images_per_s": round(speed, 2),
            "peak_memory_gib": round(memory, 2),
        }


def reset_peak_memory() -> None:
    """Count anew on the GPU; a process cannot forget its own peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> float:
    """GiB: of the GPU since `reset_peak_memory` where there is one, else of the process since its start."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    units = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units / 2**30


Advance = Callable[[int], None]
