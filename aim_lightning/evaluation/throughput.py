"""Progress of a scoring step: images per second, time left and peak memory."""

import resource
import sys
import time

import torch

from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.process import beat
from aim_lightning.utils.progress import ProgressBar


class Throughput:
    """Measure the speed of a loop, show its progress on rank 0 and send heartbeats to the watchdog.

    Args:
        name: shown in front of the progress bar.
        total: images of all ranks.
        ranks: rank 0 estimates the total progress from its own, since shares are equal up to one block.
    """

    def __init__(self, name: str, total: int, ranks: ProcessGroup) -> None:
        self.name = name
        self.total = total
        self.ranks = ranks
        self.done = 0
        self.bar = ProgressBar(name, total, "images", shown=ranks.is_rank_zero)

    def __enter__(self) -> "Throughput":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()
        self.bar.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self.start
        self.bar.__exit__()

    def advance(self, images: int) -> None:
        """Add images that this rank has finished."""
        self.done += images
        beat(f"{self.name}, after {self.done} images")
        total_done = min(self.total, self.done * self.ranks.world_size)
        self.bar.advance(total_done - self.bar.done, f"peak {peak_memory():.1f} GiB")

    def performance(self) -> dict[str, float]:
        """Return seconds, images per second of all ranks and the largest peak memory. Every rank must call it."""
        done, seconds, memory = zip(*self.ranks.gather((self.done, self.seconds, peak_memory())), strict=True)
        speed = sum(done) / max(seconds) if max(seconds) else 0.0
        return {
            "images": sum(done),
            "seconds": round(max(seconds), 2),
            "images_per_s": round(speed, 2),
            "peak_memory_gib": round(max(memory), 2),
        }


def peak_memory() -> float:
    """Return the peak memory in GiB: of the GPU since the last reset, without a GPU of the process since its start."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    units = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units / 2**30
