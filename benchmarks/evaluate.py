"""Metrics in one run: features to FID, Inception features per second, `evaluate` against torch-fidelity's command.

python benchmarks/evaluate.py [--rows 50000] [--images 50000 on a GPU, 500 on a CPU] [--size 256] [--workdir DIR]

Weights: the published file, or without it random ones in its format (the same work). torch-fidelity's command computes
FID, IS and KID of two directories; ours computes sFID, precision and recall too, with empty caches.
Both run as processes of their own; their start-up counts. torch-fidelity leaves PyTorch's default as it is,
which is TF32 in convolutions on a GPU. Ours is measured in float32, its default, and in TF32 (equal precision).
"""

import argparse
import io
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

import numpy as np
import torch
from PIL import Image
from record import save
from torch import nn

from aim_lightning.metrics.features import InceptionFeatures
from aim_lightning.metrics.fid import frechet_distance, mean_and_covariance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DISTINCT = 10_000  # images a directory; more are hard links to these, which are decoded like others
PASSES = {"reference": "reference", "samples": "features"}  # and their names in scores.json
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
    ours = float(frechet_distance(*gaussians))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(features) for features in sets), False)
    other = time.perf_counter() - start
    value = theirs["frechet_inception_distance"]
    return {
        "what": f"{rows} x 2048 features to FID, {device}",
        "seconds": seconds,
        "torch_fidelity_seconds": other,
        "ratio": other / seconds,
        "relative_difference": abs(ours - value) / value,
    }


def inception_features(weights: Path, images: int, size: int, precision: str, channels_last: bool) -> dict:
    """Images already in memory, batches of 250 on a GPU, 32 on a CPU."""
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
    what = f"Inception features of {done} images, {DEVICE}, {precision}{', channels-last' if channels_last else ''}"
    return {"what": what, "seconds": seconds, "images_per_s": done / seconds, "peak_gib": memory}


def load(weights: Path, precision: str) -> InceptionFeatures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return InceptionFeatures(str(weights), precision).load()


def random_weights(path: Path) -> Path:
    """The published format."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unread(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True):
            return None

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(0)
    network = Unread("random", ["2048"], feature_extractor_weights_path=nothing)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return path


def write_images(directory: Path, count: int, size: int, seed: int) -> None:
    """PNGs that compress about as photographs do: smooth shapes with noise, more of it for a higher seed."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 6 + 6 * seed, (size, size, 3), dtype=np.uint8)

    def write(number: int) -> None:
        own = np.random.default_rng([seed, number])
        coarse = Image.fromarray(own.integers(0, 240, (8, 8, 3), dtype=np.uint8)).resize((size, size), Image.BICUBIC)
        image = np.asarray(coarse) + np.roll(noise, number, (0, 1))
        Image.fromarray(image.astype(np.uint8)).save(directory / f"{number:06d}.png", compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(min(count, DISTINCT))))
    for number in range(DISTINCT, count):
        (directory / f"{number:06d}.png").hardlink_to(directory / f"{number % DISTINCT:06d}.png")


def timed(command: list[str], place: Path) -> tuple[float, str]:
    """Seconds and what it printed."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    print(done.stdout.strip()[-600:])
    return seconds, done.stdout


def commands(
    weights: Path, images: int, size: int, place: Path, precisions: list[str], imports: dict[str, float]
) -> list[dict]:
    """torch-fidelity's whole command, and ours in each precision, on the same two directories."""
    for name, seed in (("samples", 1), ("real", 2)):
        if not (place / name).exists():
            write_images(place / name, images, size, seed)
    theirs = [sys.executable, "-m", "torch_fidelity.fidelity", "--fid", "--isc", "--kid", "--input1", "samples"]
    theirs += ["--input2", "real", "--no-cache", "--feature-extractor-weights-path", str(weights)]
    theirs += ["--gpu", "0"] if DEVICE == "cuda" else ["--cpu"]
    theirs += ["--kid-subset-size", str(min(1000, images))]
    other, text = timed(theirs, place)
    their_fid = float(text.split("frechet_inception_distance:")[1].split()[0])
    rows = []
    for precision in precisions:
        for left in ("ours", "cache"):  # of a run before
            shutil.rmtree(place / left, ignore_errors=True)
        seconds, _ = timed(our_command(weights, precision, place), place)
        what = f"evaluate {images} PNGs of {size} pixels against {images}, {DEVICE}, {precision}"
        times = {"seconds": seconds, "torch_fidelity_seconds": other, "ratio": other / seconds, **imports}
        scores = json.loads((place / "ours" / "scores.json").read_text())
        fid = next(iter(scores["metrics"].values()))
        values = {"fid": fid, "torch_fidelity_fid": their_fid, "relative_difference": abs(fid - their_fid) / their_fid}
        if rows:
            values["relative_difference_to_float32"] = abs(fid - rows[0]["fid"]) / rows[0]["fid"]
        parts = scores["performance"]
        speed = {"features_per_s": parts["features"]["images_per_s"], "metrics_s": parts["metrics_s"]}
        speed |= {f"{name}_pass_s": parts[part]["seconds"] for name, part in PASSES.items()}
        rows.append({"what": what, **times, **speed, **values})
        print(rows[-1], flush=True)
    return rows


def import_seconds(module: str) -> float:
    """Of a process that imports it and does nothing, with a warm file cache: the best of three."""
    return min(timed([sys.executable, "-c", f"import {module}"], Path.cwd())[0] for _ in range(3))


def our_command(weights: Path, precision: str, place: Path) -> list[str]:
    config = place / f"{precision}.yaml"
    config.write_text(
        "features:\n  class_path: aim_lightning.metrics.features.InceptionFeatures\n"
        f"  init_args: {{weights: {weights}, precision: {precision}}}\n"
    )
    command = [sys.executable, "-m", "aim_lightning", "evaluate", "--config", str(config), "--samples", "samples"]
    return [*command, "--reference", "real", "--out", "ours", "--cache", "cache", "--trainer.devices", "1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=50_000 if DEVICE == "cuda" else 500)
    parser.add_argument("--command_images", type=int, help="images for the two commands (default: --images)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument(
        "--workdir", type=Path, help="stays, with its directories samples and real of the right size if there"
    )
    parser.add_argument("--weights", type=Path, default=Path(InceptionFeatures().weights))
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS, choices=PRECISIONS, help="of our network")
    parser.add_argument("--channels_last", action="store_true", help="also Inception's features in that layout")
    parser.add_argument("--skip", nargs="*", default=[], choices=["fid", "features", "commands", "imports"])
    options = parser.parse_args()
    place = (options.workdir or Path(tempfile.mkdtemp())).absolute()
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    try:
        weights = options.weights if options.weights.is_file() else random_weights(place / "inception.pth")
        if "fid" not in options.skip:
            rows += [features_to_fid(options.rows, device) for device in dict.fromkeys(("cpu", DEVICE))]
        if "features" not in options.skip:
            inputs, layouts = (weights.resolve(), options.images, options.size), {False, options.channels_last}
            rows += [
                inception_features(*inputs, one, layout) for one in options.precisions for layout in sorted(layouts)
            ]
        if "commands" not in options.skip:
            images = options.command_images or options.images
            imports = {}
            if "imports" not in options.skip:
                imports = {f"{name}_import_s": import_seconds(module) for name, module in IMPORTED.items()}
            rows += commands(weights.resolve(), images, options.size, place, options.precisions, imports)
    finally:
        if options.workdir is None:
            shutil.rmtree(place)
    for row in rows:
        print({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    print(save("evaluate", rows))


if __name__ == "__main__":
    main()
