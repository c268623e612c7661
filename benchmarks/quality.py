"""Measure if the fast decoder in bfloat16 costs quality: Fréchet distances of both decoders from one more plain set.

python benchmarks/quality.py (--run RUN | --weights DIRECTORY) [--num 5000] [--seeds 3] [--cfg_scale 1.5]
RUN: run directory or checkpoint of a trained network (its EMA weights). DIRECTORY: published layout with a network and
its tokenizer. The first two groups of sets differ in seeds too, the third has the first one's seeds. within_spread: the
means of both fast groups differ from the plain one's by at most the range of its seeds, largest minus smallest.
Writes benchmarks/results/quality_HARDWARE_DATE.json.
"""

import argparse
import statistics
from pathlib import Path

import torch
from record import save
from torch import Tensor

from aim_lightning.metrics.features import EfficientNetLite0Features, FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.pipeline import AiMPipeline, load


def samples(pipeline: AiMPipeline, decoder: str, seed: int, options: argparse.Namespace) -> Tensor:
    """Generate uint8 (num, 3, H, W), classes balanced."""
    labels = torch.arange(options.num) % pipeline.aim.config.num_classes
    how = {"decoder": decoder, "seed": seed, "cfg_scale": options.cfg_scale, "top_k": options.top_k}
    return pipeline.generate(labels, batch_size=options.batch, pixel_precision="float32", **how)


def distance(metric: FrechetDistance, network: FeatureNetwork, images: Tensor) -> float:
    """Return the distance of images from the metric's reference."""
    metric.reset()
    for block in images.split(250):
        metric.update_features(network(block.to(metric.device)), real=False)
    return float(metric.compute())


def within_spread(plain: list[float], *groups: list[float]) -> bool:
    """Return True if the mean of every group is as near to that of `plain` as its seeds are to each other."""
    spread, mean = max(plain) - min(plain), statistics.mean(plain)
    return all(abs(statistics.mean(group) - mean) <= spread for group in groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", help="run directory or checkpoint")
    source.add_argument("--weights", help="directory in the published layout")
    parser.add_argument("--num", type=int, default=5000, help="samples of a set")
    parser.add_argument("--seeds", type=int, default=3, help="sets of each decoder")
    parser.add_argument("--cfg_scale", type=float, default=1.5)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--batch", type=int, default=500, help="images at a time")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be 2 or more: one set has no deviation")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source, read = (options.run, load) if options.run else (options.weights, AiMPipeline.from_pretrained)
    pipeline = read(source, backend="torch", device=device)
    network = EfficientNetLite0Features().to(device)
    network.load()
    metric = FrechetDistance(network.num_features).to(device)
    for block in samples(pipeline, "plain", 1000, options).split(250):
        metric.update_features(network(block.to(device)), real=True)
    how = {name: value for name, value in vars(options).items() if name not in ("run", "weights")}
    row = {"weights": Path(source).name, **how, "codes": pipeline.aim.config.num_tokens}
    row["precision"] = "bfloat16" if device.type == "cuda" else "float32"
    groups = []
    for decoder, first in (("plain", 0), ("fast", 100), ("fast", 0)):
        result = [
            distance(metric, network, samples(pipeline, decoder, first + i, options)) for i in range(options.seeds)
        ]
        name = f"fd_effnet_lite0_{decoder}_seeds_from_{first}"
        groups.append(result)
        row |= {name: result, f"{name}_mean": statistics.mean(result), f"{name}_stdev": statistics.stdev(result)}
        print(f"{name}: {statistics.mean(result):.2f} +- {statistics.stdev(result):.2f} {result}", flush=True)
    row["within_spread"] = within_spread(*groups)
    print(f"within the spread of seeds: {row['within_spread']}; written to {save('quality', [row])}")


if __name__ == "__main__":
    main()
