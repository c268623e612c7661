"""Progress of a scoring step: images per second, time left and peak memory."""

import resource
import sys
import time

import torch

from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.process import beat
from aim_lightning.utils.progress import ProgressBar


class Throughput(ProgressBar):
    """Measure the speed of a loop, show its progress on rank 0 and send heartbeats to the watchdog.

    Args:
        name: shown in front of the progress bar.
        total: images of all ranks.
        ranks: rank 0 estimates the total progress from its share, since shares are equal up to one block.
    """

    def __init__(self, name: str, total: int, ranks: ProcessGroup) -> None:
        super().__init__(name, total, "images", shown=ranks.is_rank_zero)
        self.ranks, self.images = ranks, 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()

    def __exit__(self, *error) -> None:
        self.seconds = time.perf_counter() - self.start
        super().__exit__(*error)

    def add(self, images: int) -> None:
        """Add images that this rank has finished."""
        self.images += images
        beat(f"{self.name}, after {self.images} images")
        self.advance(min(self.total, self.images * self.ranks.world_size) - self.done, f"peak {peak_memory():.1f} GiB")

    def performance(self) -> dict[str, float]:
        """Return seconds, images per second of all ranks and the largest peak memory. Every rank must call it."""
        values = self.ranks.gather((self.images, self.seconds, peak_memory()))
        images, seconds, memory = sum(v[0] for v in values), max(v[1] for v in values), max(v[2] for v in values)
        speed = images / seconds if seconds else 0.0
        rounded = {"seconds": seconds, "images_per_s": speed, "peak_memory_gib": memory}
        return {"images": images} | {name: round(value, 2) for name, value in rounded.items()}


def peak_memory() -> float:
    """Return the peak memory in GiB: of the GPU since the last reset, without a GPU of the process since its start."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    units = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units / 2**30
