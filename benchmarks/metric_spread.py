"""Measure the spread of MIND and of the Fréchet distance over random sets of samples, by their number.

python benchmarks/metric_spread.py [--images data/fashion_mnist] [--size 32] [--seeds 6] [--counts 1000 2000 … 50000]

A set of samples is drawn with replacement from the training images, and in a damaged version from those without the
first class. The reference is all validation images: 10,000, so that MIND uses at most 10,000 samples of a set.
`deviation` is that of a metric over seeds, relative to its mean. `separation` is the difference that the missing class
makes, divided by the larger deviation of both versions. It says how reliably a metric ranks the two. Features are those
of EfficientNet-Lite0. Nothing is trained.
Writes benchmarks/results/metric_spread_HARDWARE_DATE.json and docs/metric_spread.png.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure
from record import save
from torch import Tensor

from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.image_sets import ExperimentImages
from aim_lightning.metrics.features import EfficientNetLite0Features, FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.metrics.mind import MongeInceptionDistance

PLOT = Path(__file__).parents[1] / "docs" / "metric_spread.png"
BATCH = 1000


def features_of(directory: Path, split: str, network: FeatureNetwork) -> tuple[Tensor, Tensor]:
    """Return the features (N, F) and labels (N,) of a split; images are padded as in configs/images."""
    options = {"train": f"{directory}/train", "val": f"{directory}/val", "image_size": 32, "pad": 2}
    images = ExperimentImages(Images(**options).open(split), split)
    parts = [range(start, min(start + BATCH, len(images))) for start in range(0, len(images), BATCH)]
    return torch.cat([network(part) for part in images.images(parts)]), images.labels


def metrics_of(reference: Tensor) -> dict[str, FrechetDistance | MongeInceptionDistance]:
    frechet = FrechetDistance(reference.shape[1])
    mean, covariance = reference.double().mean(0), reference.double().T.cov()
    frechet.load_gaussian(mean, covariance, len(reference))
    return {"fd_effnet_lite0": frechet, "mind_effnet_lite0": MongeInceptionDistance(reference)}


def value_of(metric: FrechetDistance | MongeInceptionDistance, features: Tensor) -> float:
    metric.reset()
    if isinstance(metric, FrechetDistance):
        metric.update_features(features, real=False)
    else:
        metric.update(features, torch.arange(len(features)))
    return float(metric.compute())


def measure(pools: dict[str, Tensor], reference: Tensor, counts: list[int], seeds: int) -> list[dict]:
    """Return one row per metric and number of samples.

    Args:
        pools: "complete" and "without_class", features (N, F) to draw from.
        reference: features (M, F) of the reference images.
        counts: numbers of samples.
        seeds: sets per number and pool.
    """
    rows = []
    for name, metric in metrics_of(reference).items():
        for count in counts:
            start, values = time.perf_counter(), {pool: [] for pool in pools}
            for seed in range(seeds):
                generator = torch.Generator().manual_seed(seed)
                for pool, features in pools.items():
                    drawn = torch.randint(len(features), (count,), generator=generator)
                    values[pool].append(value_of(metric, features[drawn]))
            seconds = (time.perf_counter() - start) / (seeds * len(pools))
            rows.append(summary(values) | {"metric": name, "images": count, "seeds": seeds, "seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def summary(values: dict[str, list[float]]) -> dict[str, float]:
    """Return mean, relative deviation and separation of the values of both pools over seeds."""
    mean, damaged = (statistics.mean(values[pool]) for pool in ("complete", "without_class"))
    deviations = [statistics.stdev(column) for column in values.values()]
    separation = (damaged - mean) / max(deviations)
    return {"mean": mean, "deviation": deviations[0] / mean, "mean_without_class": damaged, "separation": separation}


def plot(rows: list[dict], path: Path) -> None:
    """Draw mean, relative deviation and separation against the number of samples."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    titles = {"mean": "value of complete sets", "deviation": "deviation over seeds / value"}
    titles |= {"separation": "difference by a missing class / deviation"}
    for number, (column, title) in enumerate(titles.items(), 1):
        axes = figure.add_subplot(1, 3, number)
        for name in dict.fromkeys(row["metric"] for row in rows):
            line = [(row["images"], row[column]) for row in rows if row["metric"] == name]
            axes.plot(*zip(*line, strict=True), marker="o", label=name)
        # A separation may be negative.
        axes.set(title=title, xlabel="samples", xscale="log", yscale="linear" if column == "separation" else "log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path("data/fashion_mnist"), help="directory with train and val")
    parser.add_argument("--size", type=int, default=32, help="side in pixels that images are resized to")
    parser.add_argument("--seeds", type=int, default=6, help="sets per number of samples")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 2000, 5000, 10_000, 50_000], metavar="N")
    parser.add_argument("--plot", type=Path, default=PLOT, help="PNG file")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be 2 or more: one set has no deviation")
    warnings.filterwarnings("ignore", message="FrechetDistance")
    network = EfficientNetLite0Features(options.size).load()
    reference, _ = features_of(options.images, "val", network)
    features, labels = features_of(options.images, "train", network)
    pools = {"complete": features, "without_class": features[labels > 0]}
    rows = measure(pools, reference, options.counts, options.seeds)
    plot(rows, options.plot)
    print(save("metric_spread", rows))


if __name__ == "__main__":
    main()
