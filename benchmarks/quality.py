"""Measure if the fast decoder in bfloat16 costs quality: Fréchet distances of both decoders from one more plain set.

python benchmarks/quality.py (--run RUN | --weights DIRECTORY) [--num 5000] [--seeds 3] [--batches 500,16]
RUN: run directory or checkpoint of a trained network (its EMA weights). DIRECTORY: published layout with a network and
its tokenizer. The fast decoder is scored at each number of images at a time, since its kernels depend on it. Of its two
groups of sets, the first has other seeds than the plain one, the second the same. within_spread: the means of both
differ from the plain one's by at most the range of its seeds, largest minus smallest.
Writes benchmarks/results/quality_HARDWARE_DATE.json, a row per number of images.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from record import save
from torch import Tensor

from aim_lightning.metrics.features import EfficientNetLite0Features
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.pipeline import AiMPipeline, load

GROUP = "fd_effnet_lite0_{}_seeds_from_{}"  # decoder, first seed
Score = Callable[[str, int, int], float]  # of decoder, seed and images at a time


def samples(pipeline: AiMPipeline, decoder: str, seed: int, batch: int, options: argparse.Namespace) -> Tensor:
    """Generate uint8 (num, 3, H, W), classes balanced, `batch` images at a time."""
    labels = torch.arange(options.num) % pipeline.aim.config.num_classes
    how = {"decoder": decoder, "seed": seed, "cfg_scale": options.cfg_scale, "top_k": options.top_k}
    return pipeline.generate(labels, batch_size=batch, pixel_precision="float32", **how)


def scorer(pipeline: AiMPipeline, device: torch.device, options: argparse.Namespace) -> Score:
    """Return the function that computes the distance of a set of samples from a plain set with seed 1000."""
    network = EfficientNetLite0Features().to(device)
    network.load()
    metric = FrechetDistance(network.num_features).to(device)

    def update(decoder: str, seed: int, batch: int, real: bool) -> None:
        for block in samples(pipeline, decoder, seed, batch, options).split(250):
            metric.update_features(network(block.to(device)), real=real)

    def score(decoder: str, seed: int, batch: int) -> float:
        metric.reset()  # keeps the features of the plain set
        update(decoder, seed, batch, real=False)
        value = float(metric.compute())
        print(f"{decoder}, seed {seed}, {batch} at a time: {value:.2f}", flush=True)
        return value

    update("plain", 1000, options.batches[0], real=True)
    return score


def group_row(name: str, values: list[float], plain: list[float] | None = None) -> dict:
    """Return a group's distances, mean and deviation, and the difference of its mean from the plain group's."""
    row = {name: values, f"{name}_mean": statistics.mean(values), f"{name}_stdev": statistics.stdev(values)}
    if plain:
        row[f"{name}_minus_plain"] = statistics.mean(values) - statistics.mean(plain)
        row[f"{name}_standard_error"] = math.sqrt(sum(statistics.variance(g) / len(g) for g in (values, plain)))
    return row


def within_spread(plain: list[float], *groups: list[float]) -> bool:
    """Return True if the mean of every group is as near to that of `plain` as its seeds are to each other."""
    spread, mean = max(plain) - min(plain), statistics.mean(plain)
    return all(abs(statistics.mean(group) - mean) <= spread for group in groups)


def fast_row(score: Score, plain: list[float], batch: int) -> dict:
    """Score the fast decoder at a number of images at a time."""
    row, groups = {"batch": batch}, []
    for first in (100, 0):
        groups.append([score("fast", first + i, batch) for i in range(len(plain))])
        row |= group_row(GROUP.format("fast", first), groups[-1], plain)
    return row | {"within_spread": within_spread(plain, *groups)}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", help="run directory or checkpoint")
    source.add_argument("--weights", help="directory in the published layout")
    parser.add_argument("--num", type=int, default=5000, help="samples of a set")
    parser.add_argument("--seeds", type=int, default=3, help="sets of a group, at least 2")
    parser.add_argument("--cfg_scale", type=float, default=1.5)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--batches", default="500,16", help="images at a time; plain: the first number")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be 2 or more: one set has no deviation")
    options.batches = [int(number) for number in options.batches.split(",")]
    return options


def main() -> None:
    options = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source, read = (options.run, load) if options.run else (options.weights, AiMPipeline.from_pretrained)
    pipeline = read(source, backend="torch", device=device)
    score = scorer(pipeline, device, options)
    common = {"weights": Path(source).name, "codes": pipeline.aim.config.num_tokens}
    common |= {name: getattr(options, name) for name in ("num", "seeds", "cfg_scale", "top_k")}
    common["precision"] = "bfloat16" if device.type == "cuda" else "float32"
    plain = [score("plain", seed, options.batches[0]) for seed in range(options.seeds)]
    common |= group_row(GROUP.format("plain", 0), plain)
    rows = []
    for batch in options.batches:
        rows.append(common | fast_row(score, plain, batch))
        for name in (name for name in rows[-1] if name.endswith(("_mean", "_minus_plain", "_standard_error"))):
            print(f"{name}: {rows[-1][name]:.3f}")
        print(f"{batch} at a time, within the spread: {rows[-1]['within_spread']}; written to {save('quality', rows)}")


if __name__ == "__main__":
    main()
