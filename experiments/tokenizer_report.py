"""Write the report of a tokenizer experiment: results, configurations, curves and reconstructions of its runs.

python experiments/tokenizer_report.py runs/fashion_mnist_tokenizer adversarial plain --out DIR
"""

import argparse
import math
import sys
from pathlib import Path

import torch

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.config.yaml import dump
from aim_lightning.data.images.dataset import Images
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path, read_json, write_json, write_text
from aim_lightning.utils.grid import labelled_grid, save_png
from aim_lightning.utils.pixels import to_uint8, to_unit_range

CURVES = {
    "PSNR, dB (validation)": ("val/psnr",),
    "SSIM (validation)": ("val/ssim",),
    "reconstruction loss (training)": ("train/reconstruction",),
    "codebook usage (window of training, validation)": ("train/codebook_usage", "val/codebook_usage"),
    "codebook perplexity (validation)": ("val/codebook_perplexity",),
    "adversarial losses (training)": ("train/generator", "train/discriminator"),
}
IMAGES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, help="directory of the experiment's runs")
    parser.add_argument("runs", nargs="+", help="names of runs")
    parser.add_argument("--out", type=Path, required=True, help="directory of the report")
    parser.add_argument("--command", default="", help="command that made the runs")
    options = parser.parse_args()
    directories = {name: options.experiment / name for name in options.runs}
    results = {name: _result(directory) for name, directory in directories.items()}
    head = {"command": options.command, "torch": torch.__version__}
    for name in ("commit", "hardware"):  # of all runs, in case they differ
        head[name] = ", ".join(dict.fromkeys(result[name] for result in results.values()))
    write_json(options.out / "results.json", {"experiment": options.experiment.name, **head, "runs": results})
    for name, directory in directories.items():
        configuration = read_checkpoint(newest_checkpoint(directory))["configuration"]
        write_text(options.out / f"config_{name}.yaml", dump(configuration))
    save_png(_reconstructions(directories), options.out / "reconstructions.png")
    _draw_curves(directories, options.out / "curves.png")
    _print(results)
    print(f"report: {options.out}")


def _result(directory: Path) -> dict:
    """Return results.json of a run with the seconds of all its calls of `fit`, start-up and stopped ones included."""
    result = read_json(directory / "results.json", "results")
    seconds = directory / "fit_seconds"
    result["fit_seconds"] = sum(map(int, seconds.read_text().split())) if seconds.exists() else None
    return result


def _reconstructions(directories: dict[str, Path]) -> torch.Tensor:
    """Arrange the first validation images above their reconstructions by each run."""
    configuration = read_checkpoint(newest_checkpoint(next(iter(directories.values()))))["configuration"]
    originals, _ = Images(**configuration["images"]).open("val").batch(range(IMAGES))
    rows = [originals]
    for directory in directories.values():
        tokenizer = load_tokenizer(directory)
        rows.append(to_uint8(tokenizer.decode(tokenizer.encode(to_unit_range(originals)))))
    return labelled_grid(torch.cat(rows), IMAGES, ["original", *directories])


def _draw_curves(directories: dict[str, Path], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 7), layout="constrained")
    for axis, (title, tags) in zip(axes.flat, CURVES.items(), strict=True):
        for name, directory in directories.items():
            scalars = _scalars(directory)
            for tag in tags:
                label = name if len(tags) == 1 else f"{name}: {tag}"
                axis.plot(*zip(*scalars.get(tag, [(float("nan"),) * 2]), strict=True), label=label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _print(results: dict[str, dict]) -> None:
    names = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    rows = [["", *results]]
    rows += [[n, *(f"{result['metrics'].get(n, math.nan):.4f}" for result in results.values())] for n in names]
    rows.append(["seconds of fit", *(str(result["fit_seconds"]) for result in results.values())])
    for name, *values in rows:
        print(f"{name:32s}" + "".join(f"{value:>14s}" for value in values))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
