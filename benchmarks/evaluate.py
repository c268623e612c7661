"""Measure features to FID, Inception features per second, and `evaluate` against torch-fidelity's command.

python benchmarks/evaluate.py [--rows 50000] [--images 50000 on a GPU, 500 on a CPU] [--size 256] [--workdir DIR]

Weights: the published file, or without it random ones in its format (the same work). torch-fidelity's command computes
FID, IS and KID of two directories; `evaluate` also computes sFID, precision and recall, with empty caches.
Both run in separate processes, and their start-up counts. torch-fidelity keeps PyTorch's default on a GPU, TF32 in
convolutions. `evaluate` is measured in float32, its default, and in TF32.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from record import save
from torch import nn

from aim_lightning.metrics.features import InceptionFeatures
from aim_lightning.metrics.fid import frechet_distance, mean_and_covariance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DISTINCT = 10_000  # images per directory; more are hard links to these
PASSES = {"reference": "reference", "samples": "features"}  # with their names in scores.json
IMPORTED = {"our": "aim_lightning.cli.build.evaluation_setup", "torch_fidelity": "torch_fidelity.fidelity"}
PRECISIONS = ("float32", "tf32") if DEVICE == "cuda" else ("float32",)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def features_to_fid(rows: int, device: str) -> dict:
    """Compute float64 sums over batches of 250 and the distance, next to torch-fidelity's two functions."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    generator = torch.Generator().manual_seed(0)
    sets = [torch.rand(rows, 2048, generator=generator) + shift for shift in (0, 0.1)]
    start = time.perf_counter()
    gaussians = []
    for features in sets:
        total = torch.zeros(2048, dtype=torch.float64, device=device)
        outer = torch.zeros(2048, 2048, dtype=torch.float64, device=device)
        for part in features.split(250):
            part = part.to(device).double()
            total += part.sum(0)
            outer += part.T @ part
        gaussians += mean_and_covariance(total, outer, torch.tensor(rows, device=device))
    distance, seconds = float(frechet_distance(*gaussians)), time.perf_counter() - start
    start = time.perf_counter()
    metric = fid_statistics_to_metric(*(fid_features_to_statistics(features) for features in sets), False)
    other_seconds, value = time.perf_counter() - start, metric["frechet_inception_distance"]
    times = {"seconds": seconds, "torch_fidelity_seconds": other_seconds, "ratio": other_seconds / seconds}
    title = f"{rows} x 2048 features to FID, {device}"
    return {"what": title, **times, "relative_difference": abs(distance - value) / value}


def inception_features(weights: Path, images: int, size: int, precision: str, channels_last: bool) -> dict:
    """Measure the network on images in memory, in batches of 250 on a GPU and 32 on a CPU."""
    network = load(weights, precision).to(DEVICE)
    if channels_last:  # the convolutions follow their weights' layout
        network.network.to(memory_format=torch.channels_last)
    batch = 250 if DEVICE == "cuda" else 32
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=DEVICE)
    network.outputs(pixels)
    synchronize()
    start, done = time.perf_counter(), 0
    while done < images:
        network.outputs(pixels)
        done += batch
    synchronize()
    seconds = time.perf_counter() - start
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0
    title = f"Inception features of {done} images, {DEVICE}, {precision}{', channels-last' if channels_last else ''}"
    return {"what": title, "seconds": seconds, "images_per_s": done / seconds, "peak_gib": memory}


def load(weights: Path, precision: str) -> InceptionFeatures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return InceptionFeatures(str(weights), precision).load()


def random_weights(path: Path) -> Path:
    """Write random weights in the published format."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    with mock.patch("torch.load"), mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="unread")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return path


def write_images(directory: Path, count: int, size: int, seed: int) -> None:
    """Write PNG files that compress like photographs: smooth shapes with noise, more of it for a higher seed."""
    directory.mkdir(parents=True)
    noise = np.random.default_rng(seed).integers(0, 6 + 6 * seed, (size, size, 3), dtype=np.uint8)

    def write(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        coarse = Image.fromarray(rng.integers(0, 240, (8, 8, 3), dtype=np.uint8)).resize((size, size), Image.BICUBIC)
        image = np.asarray(coarse) + np.roll(noise, number, (0, 1))
        Image.fromarray(image.astype(np.uint8)).save(directory / f"{number:06d}.png", compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(min(count, DISTINCT))))
    for number in range(DISTINCT, count):
        (directory / f"{number:06d}.png").hardlink_to(directory / f"{number % DISTINCT:06d}.png")


def timed(command: list[str], directory: Path) -> tuple[float, str]:
    """Run a command and return its seconds and its standard output."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    print(result.stdout.strip()[-600:])
    return seconds, result.stdout


def commands(
    weights: Path, images: int, size: int, directory: Path, precisions: list[str], imports: dict[str, float]
) -> list[dict]:
    """Measure torch-fidelity's command, and `evaluate` in each precision, on the same two directories."""
    for name, seed in (("samples", 1), ("real", 2)):
        if not (directory / name).exists():
            write_images(directory / name, images, size, seed)
    device = ["--gpu", "0"] if DEVICE == "cuda" else ["--cpu"]
    reference = [sys.executable, "-m", "torch_fidelity.fidelity", "--fid", "--isc", "--kid", "--input1", "samples"]
    reference += ["--input2", "real", "--no-cache", "--feature-extractor-weights-path", str(weights), *device]
    reference_seconds, text = timed([*reference, "--kid-subset-size", str(min(1000, images))], directory)
    reference_fid = float(text.split("frechet_inception_distance:")[1].split()[0])
    rows = []
    for precision in precisions:
        for name in ("ours", "cache"):  # of a previous run
            shutil.rmtree(directory / name, ignore_errors=True)
        seconds, _ = timed(evaluate_command(weights, precision, directory), directory)
        scores = json.loads((directory / "ours" / "scores.json").read_text())
        fid, parts = next(iter(scores["metrics"].values())), scores["performance"]
        row = {"what": f"evaluate {images} PNGs of {size} pixels against {images}, {DEVICE}, {precision}"}
        row |= {"seconds": seconds, "torch_fidelity_seconds": reference_seconds, "ratio": reference_seconds / seconds}
        row |= {**imports, "features_per_s": parts["features"]["images_per_s"], "metrics_s": parts["metrics_s"]}
        row |= {f"{name}_pass_s": parts[part]["seconds"] for name, part in PASSES.items()}
        difference = abs(fid - reference_fid) / reference_fid
        row |= {"fid": fid, "torch_fidelity_fid": reference_fid, "relative_difference": difference}
        if rows:
            row["relative_difference_to_float32"] = abs(fid - rows[0]["fid"]) / rows[0]["fid"]
        rows.append(row)
        print(row, flush=True)
    return rows


def import_seconds(module: str) -> float:
    """Return the seconds of a process that only imports a module, with a warm file cache: the best of three."""
    return min(timed([sys.executable, "-c", f"import {module}"], Path.cwd())[0] for _ in range(3))


def evaluate_command(weights: Path, precision: str, directory: Path) -> list[str]:
    config, options = directory / f"{precision}.yaml", {"weights": str(weights), "precision": precision}
    features = {"class_path": "aim_lightning.metrics.features.InceptionFeatures", "init_args": options}
    config.write_text(json.dumps({"features": features}))
    command = [sys.executable, "-m", "aim_lightning", "evaluate", "--config", str(config), "--samples", "samples"]
    return [*command, "--reference", "real", "--out", "ours", "--cache", "cache", "--trainer.devices", "1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=50_000 if DEVICE == "cuda" else 500)
    parser.add_argument("--command_images", type=int, help="images for the two commands (default: --images)")
    parser.add_argument("--size", type=int, default=256)
    kept = "directory that stays; its directories samples and real are used if they exist"
    parser.add_argument("--workdir", type=Path, help=kept)
    parser.add_argument("--weights", type=Path, default=Path(InceptionFeatures().weights))
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS, choices=PRECISIONS, help="of our network")
    parser.add_argument("--channels_last", action="store_true", help="also Inception's features in that layout")
    parser.add_argument("--skip", nargs="*", default=[], choices=["fid", "features", "commands", "imports"])
    options = parser.parse_args()
    directory = (options.workdir or Path(tempfile.mkdtemp())).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    try:
        weights = options.weights if options.weights.is_file() else random_weights(directory / "inception.pth")
        weights = weights.resolve()
        if "fid" not in options.skip:
            rows += [features_to_fid(options.rows, device) for device in dict.fromkeys(("cpu", DEVICE))]
        if "features" not in options.skip:
            for precision in options.precisions:
                for channels_last in sorted({False, options.channels_last}):
                    rows.append(inception_features(weights, options.images, options.size, precision, channels_last))
        if "commands" not in options.skip:
            modules = {} if "imports" in options.skip else IMPORTED
            imports = {f"{name}_import_s": import_seconds(module) for name, module in modules.items()}
            images = options.command_images or options.images
            rows += commands(weights, images, options.size, directory, options.precisions, imports)
    finally:
        if options.workdir is None:
            shutil.rmtree(directory)
    for row in rows:
        print({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    print(save("evaluate", rows))


if __name__ == "__main__":
    main()
