"""`aim-lightning dataset`: write shards of your own images, and an experiment for each stage."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from math import log, log2
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from aim_lightning.cli.common_options import add_shared, flag, number, option
from aim_lightning.runs.directory import NAME
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text
from aim_lightning.utils.logging import log_next

if TYPE_CHECKING:
    from aim_lightning.data.images.directory_split import SplitReport

ESTIMATE_STEPS = 4
LARGEST_IMBALANCE = 10  # largest class by smallest class; beyond it a line warns
DOWNSAMPLING = 4  # pixels per code, of configs/model/vq_tiny.yaml
CODEBOOK = 512
EPOCHS, FEWEST_STEPS, MOST_STEPS = 50, 1500, 20000
QUICK_STEPS = 200  # a first result in minutes
TEMPLATES = Path(__file__).parents[1] / "templates"
# The first line of each file: its hash shows a later `make dataset` whether the rest was edited.
MARK = "# Made by `make dataset` (rest of the file: {}), which rewrites it as long as nobody edits it."
HELP = "make shards and experiments from a directory of your own images"
NEEDS_CONFIG = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    layout = "images: DIRECTORY/CLASS_NAME/*.jpg, png and so on, or the same below DIRECTORY/train and val"
    parser.add_argument("directory", metavar="DIRECTORY", help=layout)
    parser.add_argument("name", metavar="NAME", help="name of the data set and of its experiments")
    size = "height and width of the networks' input, pixels, a multiple of 4"
    parser.add_argument("--image_size", **option(size, 64, type=number(int, 2 * DOWNSAMPLING, 4096)))
    share = "share of the images, by a hash of their file names, kept for validation"
    parser.add_argument("--val_fraction", **option(share, 0.1, type=number(float, 0, 1, above=True, below=True)))
    limit = "largest image to accept, pixels; the default is Pillow's protection"
    parser.add_argument("--max_pixels", **option(limit, 178_956_970, type=number(int, 1)))
    background = "colour behind transparent pixels, a name or '#rrggbb'; also written to the experiments"
    parser.add_argument("--background", **option(background, "white"))
    quick = f"experiments of {QUICK_STEPS} steps per stage, for a first result in minutes"
    parser.add_argument("--quick", **flag(quick))
    parser.add_argument("--estimate", **flag("measure some steps of both stages and print their hours on this machine"))
    add_shared(parser, "on_error")


def run(config: None, options: argparse.Namespace) -> int:
    """Write data/NAME, configs/images/NAME.yaml and experiments/NAME_{tokenizer,aim}.yaml."""
    from aim_lightning.data.images.directory_split import make_shards

    name, size = options.name, options.image_size
    if not NAME.fullmatch(name):
        raise UserError(f"the data set is called {name!r}; use letters, digits, '.', '_' and '-'")
    if size % DOWNSAMPLING:
        raise UserError(f"--image_size is {size}; give a multiple of {DOWNSAMPLING}, for example 64")
    if not (Path("configs/images").is_dir() and Path("experiments").is_dir()):
        raise UserError("there is no configs/images or experiments here; run this in the root of a checkout")
    refuse_files_of_others(name)
    out, fraction = Path("data") / name, options.val_fraction
    reading = (options.on_error, options.max_pixels, options.background)
    report = make_shards(Path(options.directory), out, fraction, 2 * size, *reading)
    print(*_report_lines(report, out, options.background), sep="\n")
    for path, text in experiment_files(name, size, report, options.quick, options.background).items():
        write_text(path, f"{_mark(text)}\n{text}")
        print(f"wrote {path}")
    for stage, path in zip(("tokenizer", "AiM"), file_names(name)[1:] if options.estimate else (), strict=False):
        print(f"{stage}: about {_hours(path):.1g} hours of training on this machine, validation not included")
    commands = (f"train EXP={name}_tokenizer", f"tokenize EXP={name}_tokenizer", f"train EXP={name}_aim")
    log_next("\n  make ".join([f"make stages NAME={name} trains both stages, or one by one:", *commands]))
    return 0


def _hours(path: str) -> float:
    """Return the hours of an experiment's training, from a few steps on one device."""
    from aim_lightning.cli.arguments import split
    from aim_lightning.cli.build.trainer_cli import quiet
    from aim_lightning.cli.config import read_and_check
    from aim_lightning.cli.plan.benchmark import measure
    from aim_lightning.data.stream import BatchPlan

    quiet()
    config = read_and_check(split(["--config", path]))
    batch = BatchPlan.make(config.values["data"]["init_args"]["global_batch_size"], world_size=1)
    # Codes are simulated: stage 2 has none before stage 1 is trained.
    measured = measure(config, batch, ESTIMATE_STEPS, simulate=path.endswith("_aim.yaml"))
    return measured.seconds * config.trainer["max_steps"] / 3600


def _report_lines(report: SplitReport, out: Path, background: str) -> Iterator[str]:
    train, val = report.rows["train"], report.rows["val"]
    fewest, most = min(report.train_per_class), max(report.train_per_class)
    if report.splits:
        yield "splits of the directory: " + ", ".join(f"{path} for {split}" for split, path in report.splits.items())
    yield f"{out}: {train} training and {val} validation images, {fewest} to {most} training images per class"
    if most > LARGEST_IMBALANCE * fewest:
        large, small = (report.class_names[report.train_per_class.index(count)] for count in (most, fewest))
        yield f"warning: {large} has {most} images, {small} only {fewest}; rare classes are learned badly"
    if report.transparent:
        yield f"warning: {report.transparent} images have transparent pixels, composited on {background} (--background)"
    if report.skipped:
        number, first = len(report.skipped), report.skipped[0][0]
        yield f"{number} unreadable images left out (first: {first}); {out}/train/manifest.json lists them"


def file_names(name: str) -> tuple[str, str, str]:
    """Return the paths of the image section and of the experiments of both stages."""
    return f"configs/images/{name}.yaml", f"experiments/{name}_tokenizer.yaml", f"experiments/{name}_aim.yaml"


def crop_range(size: int) -> tuple[float, float]:
    """Return the ranges of ten_crop that give 20 different crops of images of at least 8 pixels per side."""
    return (1.1, 1.05) if size >= 20 else (1.25, 1.125)


def experiment_files(
    name: str, size: int, report: SplitReport, quick: bool = False, background: str = "white"
) -> dict[str, str]:
    """Return the text of each file by its path, with sizes for some hundred images per class."""
    train, val, side = report.rows["train"], report.rows["val"], size // DOWNSAMPLING
    batch = min(32, 1 << (train.bit_length() - 1))
    steps = QUICK_STEPS if quick else min(max(EPOCHS * train // batch, FEWEST_STEPS), MOST_STEPS) // 100 * 100
    values = {"name": name, "size": size, "side": side, "tokens": side**2, "train": train, "val": val, "batch": batch}
    values["background"] = "" if background == "white" else f'\n  background: "{background}"'
    values |= {"classes": len(report.class_names), "shown": min(16, val), "samples": 200 if quick else 2000}
    values |= {"steps": steps, "every": steps // 5, "saved": min(500, steps // 2)}
    # A healthy run starts at the loss of equally likely codes.
    values |= {"codebook": CODEBOOK, "nats": f"{log(CODEBOOK):.1f}", "bits": f"{log2(CODEBOOK):g}"}
    values["ranges"] = ", ".join(map(str, crop_range(size)))
    templates = [Template((TEMPLATES / f"{part}.yaml").read_text("utf-8")) for part in ("images", "tokenizer", "aim")]
    return {path: text.substitute(values) for path, text in zip(file_names(name), templates, strict=True)}


def refuse_files_of_others(name: str) -> None:
    """Refuse to overwrite files that `make dataset` did not write, or that were edited since.

    Args:
        name: of the data set.

    Raises:
        UserError: a file was written by hand or edited.
    """
    for path in filter(Path.exists, map(Path, file_names(name))):
        first, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        if not first.startswith(MARK.partition("{}")[0]):
            raise UserError(f"{path} exists and is not one that `make dataset` made; take another NAME, or remove it")
        if first != _mark(rest):
            fix = "rename it to keep your version, or remove it"
            raise UserError(f"{path} was edited since `make dataset` made it; {fix}")


def _mark(text: str) -> str:
    return MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])
