"""Measure seconds from the loader's start to the first batch, at points of an epoch of ImageNet's size.

python benchmarks/resume.py [--rows 1281167] [--views 10] [--directory DIR]

Writes simulated shards (6.6 GB at the defaults) to a temporary directory, or once to DIR and keeps them there. Each
cold measurement starts without the shards in the page cache.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from record import save
from tokens import simulate

from aim_lightning.data.tokens.datamodule import TokenDataModule
from aim_lightning.data.tokens.read.reader import plan_windows

BATCH = 2048


def drop_from_cache(directory: Path) -> None:
    """Drop the shards from the page cache."""
    for path in directory.glob("*.tar"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def first_batch(directory: Path, epoch: int, batch: int, workers: int) -> float:
    """Return seconds from the creation of the DataModule to the first batch."""
    start = time.perf_counter()
    data = TokenDataModule(str(directory), global_batch_size=BATCH, max_device_batch_size=256, num_workers=workers)
    data.setup("fit")
    data.plan_for(1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    data.cursor.epoch, data.cursor.batch = epoch, batch
    next(iter(data.train_dataloader()))
    return time.perf_counter() - start


def start_batches(data: TokenDataModule, epoch: int, number: int) -> list[int]:
    """Return global batches: random ones, the first and last, and those whose first rows span two windows."""
    data.setup("fit")
    data.plan_for(1)
    last = data.batches_per_epoch - 1
    random = np.random.default_rng(0).integers(0, last, number).tolist()
    windows = plan_windows(data.manifest, data.window_rows, data.seed, epoch)
    # the micro-batch is 256 rows: the border must fall into the first of the global batch
    straddling = [w.stop // BATCH for w in windows[:-1] if w.stop % BATCH and w.stop % BATCH < 256]
    return [0, last, *random, *straddling[:3]]


def main() -> None:
    """Measure, print and save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1281167, help="images")
    parser.add_argument("--views", type=int, default=10, help="stored versions of each")
    parser.add_argument("--places", type=int, default=6, help="random points of the epoch")
    parser.add_argument("--directory", type=Path, help="keep the shards here")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        for split, rows in (("train", options.rows), ("val", BATCH)):
            (directory / split).mkdir(parents=True, exist_ok=True)
            if not (directory / split / "manifest.json").exists():
                simulate(directory / split, rows, options.views)
        rows = []
        for workers in (0, 1):
            for cold in (True, False):
                seconds = []
                for batch in start_batches(TokenDataModule(str(directory), global_batch_size=BATCH), 1, options.places):
                    if cold:
                        drop_from_cache(directory / "train")
                    else:
                        first_batch(directory, 1, batch, workers)  # fill the page cache
                    seconds.append(first_batch(directory, 1, batch, workers))
                figures = {"workers": workers, "shards on disk": "cold" if cold else "in memory"}
                figures |= {"median_s": round(statistics.median(seconds), 2), "worst_s": round(max(seconds), 2)}
                rows.append({**figures, "places": len(seconds)})
                print(rows[-1], flush=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"peak memory of this process: {peak:,.0f} MiB")
        print(save("resume", [*rows, {"rows": options.rows, "views": options.views, "peak_mib": round(peak)}]))


if __name__ == "__main__":
    main()
