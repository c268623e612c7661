"""Write the configurations of `aim-lightning dataset`: images, and an experiment for each stage."""

import hashlib
from math import log, log2
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text

if TYPE_CHECKING:
    from aim_lightning.data.images.directory_split import SplitReport

DOWNSAMPLING = 4  # pixels per code, of configs/model/vq_tiny.yaml
CODEBOOK = 512
EPOCHS, FEWEST_STEPS, MOST_STEPS = 50, 1500, 20000
QUICK_STEPS = 200  # a first result in minutes
TEMPLATES = Path(__file__).with_name("templates")
# The first line of each file: its hash shows a later `make dataset` whether the rest was edited.
MARK = "# Made by `make dataset` (rest of the file: {}), which rewrites it as long as nobody edits it."


def file_names(name: str) -> tuple[str, str, str]:
    """Return the paths of the image section and of the experiments of both stages."""
    return f"configs/images/{name}.yaml", f"experiments/{name}_tokenizer.yaml", f"experiments/{name}_aim.yaml"


def crop_range(size: int) -> tuple[float, float]:
    """Return the ranges of ten_crop that give 20 different crops of images of at least 8 pixels per side."""
    return (1.1, 1.05) if size >= 20 else (1.25, 1.125)


def experiment_files(name: str, size: int, report: "SplitReport", quick: bool = False) -> dict[str, str]:
    """Return the text of each file by its path, with sizes for some hundred images per class."""
    train, val, side = report.rows["train"], report.rows["val"], size // DOWNSAMPLING
    batch = min(32, 1 << (train.bit_length() - 1))
    steps = QUICK_STEPS if quick else min(max(EPOCHS * train // batch, FEWEST_STEPS), MOST_STEPS) // 100 * 100
    values = {"name": name, "size": size, "side": side, "tokens": side**2, "train": train, "val": val, "batch": batch}
    values |= {"classes": len(report.class_names), "shown": min(16, val), "samples": 200 if quick else 2000}
    values |= {"steps": steps, "every": steps // 5, "saved": min(500, steps // 2)}
    # A healthy run starts at the loss of equally likely codes.
    values |= {"codebook": CODEBOOK, "nats": f"{log(CODEBOOK):.1f}", "bits": f"{log2(CODEBOOK):g}"}
    values["ranges"] = ", ".join(map(str, crop_range(size)))
    templates = [Template((TEMPLATES / f"{part}.yaml").read_text()) for part in ("images", "tokenizer", "aim")]
    return {path: text.substitute(values) for path, text in zip(file_names(name), templates, strict=True)}


def refuse_files_of_others(name: str) -> None:
    """Refuse to overwrite files that `write_marked` did not write, or that were edited since.

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


def write_marked(path: str, text: str) -> None:
    """Write a file with the mark that `refuse_files_of_others` looks for."""
    write_text(path, f"{_mark(text)}\n{text}")


def _mark(text: str) -> str:
    return MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])
