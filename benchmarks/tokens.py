"""Measure rows per second of the token DataModule and of plain webdataset on the same shards.

python benchmarks/tokens.py [--rows 200000] [--repeats 3]
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import webdataset as wds
from record import save

from aim_lightning.data.tokens.datamodule import TokenDataModule
from aim_lightning.data.tokens.format.manifest import TokenManifest, TokenShard
from aim_lightning.data.tokens.format.record_format import write_shard
from aim_lightning.utils.files import sha256_file

BATCH = 256


def simulate(directory: Path, rows: int, views: int, rows_per_shard: int = 10000) -> None:
    """Write shards of random codes in the format of `tokenize` (16x16 codes of 16,384)."""
    rng, shards = np.random.default_rng(0), []
    for number, start in enumerate(range(0, rows, rows_per_shard)):
        size = min(rows_per_shard, rows - start)
        codes = rng.integers(0, 16384, (size, views, 256), dtype=np.uint16)
        labels = rng.integers(0, 1000, size)
        path = directory / f"tokens-{number:06d}.tar"
        write_shard(path, codes, labels, [f"{start + i:08d}" for i in range(size)])
        shards.append(TokenShard(path.name, size, sha256_file(path)))
    TokenManifest((16, 16), 16384, [str(i) for i in range(1000)], views, "none", "simulated", shards).save(directory)


def datamodule_rate(directory: Path) -> float:
    """Return rows per second of the DataModule, from a cold start of the loader."""
    data = TokenDataModule(str(directory), global_batch_size=BATCH)
    data.setup("fit")
    data.plan_for(1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    return _rate(lambda: (len(batch["labels"]) for batch in data.train_dataloader()))


def webdataset_rate(directory: Path) -> float:
    """Return rows per second of webdataset's shuffle and batching over the same records, as int64 codes."""

    def rows(samples):
        for sample in samples:
            yield from zip(sample["codes.npy"][:, 0], sample["labels.npy"], strict=True)

    def count():
        urls = sorted(str(path) for path in (directory / "train").glob("*.tar"))
        stages = (wds.SimpleShardList(urls), wds.tarfile_to_samples(), wds.decode(), rows, wds.shuffle(10000))
        for codes, _labels in wds.DataPipeline(*stages, wds.batched(BATCH)):
            yield len(torch.as_tensor(np.asarray(codes).astype(np.int64)))

    return _rate(count)


def _rate(batches) -> float:
    start = time.perf_counter()
    return sum(batches()) / (time.perf_counter() - start)


def main() -> None:
    """Measure, print and save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200000, help="images in the simulated set")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    results = []
    with tempfile.TemporaryDirectory() as root:
        for views in (1, 10):
            directory = Path(root) / str(views)
            rows = options.rows if views == 1 else options.rows // 2
            for split, size in (("train", rows), ("val", BATCH)):
                (directory / split).mkdir(parents=True)
                simulate(directory / split, size, views)
            figures = {"DataModule": [], "bare webdataset": []}
            for _ in range(options.repeats):
                figures["DataModule"].append(datamodule_rate(directory))
                figures["bare webdataset"].append(webdataset_rate(directory))
            medians = {name: statistics.median(rates) for name, rates in figures.items()}
            for name, rate in medians.items():
                print(f"{views:2d} view(s)  {name:16s} {rate:10,.0f} rows/s")
            ratio = medians["DataModule"] / medians["bare webdataset"]
            print(f"{views:2d} view(s)  ratio            {ratio:10.2f}", flush=True)
            rates = {f"{name} rows/s": round(rate) for name, rate in medians.items()}
            results.append({"views": views, "rows": rows, **rates, "ratio": round(ratio, 2)})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"peak memory of this process, torch included: {peak:,} MiB")
    print(save("tokens", [*results, {"peak_mib": peak}]))


if __name__ == "__main__":
    main()
