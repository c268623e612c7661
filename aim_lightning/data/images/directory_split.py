"""Convert image files to training and validation shards.

The split of an image depends on a hash of its file name only: adding or removing other images does not move it.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from aim_lightning.data.images.base import FileSource, split_directories
from aim_lightning.data.images.dataset import same_classes
from aim_lightning.data.images.decode import BACKGROUND, UnreadableImage, background_rgb, read_image
from aim_lightning.data.images.directory import open_source
from aim_lightning.data.images.shard_writer import EXTENSIONS, MANIFEST, EncodedImage, write_image_shards
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable, read_json
from aim_lightning.utils.progress import progress

ROWS_PER_SHARD = 1000
MADE_BY = "aim-lightning dataset"


@dataclass(frozen=True)
class SplitReport:
    """Result of a split.

    Args:
        rows: images per split.
        class_names: names by label.
        train_per_class: training images per class.
        skipped: (key, reason) of the images left out.
        transparent: number of images with transparent pixels.
        splits: directories of the splits that the root already contained, by split.
    """

    rows: dict[str, int]
    class_names: list[str]
    train_per_class: list[int]
    skipped: list[tuple[str, str]]
    transparent: int
    splits: dict[str, Path]


def make_shards(
    directory: Path,
    out: Path,
    val_fraction: float,
    largest_side: int,
    on_error: str,
    max_pixels: int,
    background: str = BACKGROUND,
) -> SplitReport:
    """Write `out`/train and `out`/val.

    Args:
        directory: class-per-directory tree, imagefolder with metadata, or `train/` and `val/` of one of them.
        out: directory to write; shards in it are replaced.
        val_fraction: expected share of the images in val, between 0 and 1; unused if the directory contains `val/`.
        largest_side: an image with a longer shorter side is resized to this, pixels, as a JPEG of quality 95. The
            others keep their bytes if shards support their format, and become PNG otherwise.
        on_error: ``error``, or ``skip`` to leave unreadable images out and list them.
        max_pixels: larger images are refused as unreadable.
        background: colour behind the transparent pixels of images that do not keep their bytes.

    Raises:
        UserError: an unreadable image, a class with fewer than two images, or splits with different classes.
    """
    refuse_foreign(out)
    splits = split_directories(directory) if directory.is_dir() else {}
    sources, skipped = splits or {"train": directory}, []
    encoders = {split: _ShardEncoder(path, largest_side, max_pixels, background) for split, path in sources.items()}
    names = encoders["train"].source.class_names
    if "val" in encoders:
        same_classes(encoders["train"].source, encoders["val"].source, str(directory))
    rows = {split: encoder.readable(on_error, skipped) for split, encoder in encoders.items()}
    transparent = sum(encoder.source.transparent for encoder in encoders.values())
    if "val" not in encoders:
        encoders["val"], in_val = encoders["train"], choose_val(encoders["train"].source, rows["train"], val_fraction)
        rows = {"train": [row for row in rows["train"] if row not in in_val], "val": sorted(in_val)}
    extra = {"made_by": MADE_BY, "skipped": [{"key": key, "reason": reason} for key, reason in skipped]}
    for split, split_rows in rows.items():
        records = encoders[split].records(progress(split_rows, f"writing {split}"))
        write_image_shards(records, out / split, names, ROWS_PER_SHARD, extra)
    per_class = np.bincount(encoders["train"].source.labels[rows["train"]], minlength=len(names)).tolist()
    counts = {split: len(items) for split, items in rows.items()}
    return SplitReport(counts, names, per_class, skipped, transparent, splits)


def refuse_foreign(out: Path) -> None:
    """Check that a directory contains nothing but results of `make_shards`, which may be incomplete.

    Args:
        out: directory to write.

    Raises:
        UserError: it contains a file of another origin.
    """
    for path in sorted(out.rglob("*")):
        replaceable = path.name[0] == "." or (path.is_dir() and path.parent == out and path.name in ("train", "val"))
        replaceable = replaceable or (path.parent.parent == out and path.match("images-*.tar"))
        if path.name == MANIFEST:
            replaceable = read_json(path, "image manifest").get("made_by") == MADE_BY
        if not replaceable:
            raise UserError(f"{out} holds {path.relative_to(out)}, which this command did not write; use another name")


def choose_val(source: FileSource, rows: list[int], val_fraction: float) -> set[int]:
    """Return the rows whose file name hashes below val_fraction; both splits get at least one per class.

    Args:
        source: the images.
        rows: rows to choose from.
        val_fraction: share between 0 and 1.

    Raises:
        UserError: a class with fewer than two images.
    """
    values = {row: name_hash(Path(source.key(row)).name) for row in rows}
    chosen = set()
    for label, name in enumerate(source.class_names):
        ordered = sorted((row for row in rows if source.labels[row] == label), key=lambda row: (values[row], row))
        if len(ordered) < 2:
            raise UserError(f"class {name} has {len(ordered)} readable images; training and validation need one each")
        count = sum(values[row] < val_fraction for row in ordered)
        chosen |= set(ordered[: min(max(count, 1), len(ordered) - 1)])
    return chosen


def name_hash(name: str) -> float:
    """Return a hash in [0, 1) of a file name.

    Args:
        name: file name without directory.
    """
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") / 2**64


class _ShardEncoder:
    """Encodes images as shards store them; call `readable` before `records`."""

    def __init__(self, path: Path, largest_side: int, max_pixels: int, background: str) -> None:
        self.source = open_source(path)
        if not isinstance(self.source, FileSource):
            raise UserError(f"{path} is a finished image set; name it in images.train or images.val of an experiment")
        self.source.max_pixels, self.source.background = max_pixels, background_rgb(background)
        self.largest_side = largest_side
        self._scales: dict[int, float] = {}  # of readable rows: images that keep their bytes are decoded only once

    def readable(self, on_error: str, skipped: list[tuple[str, str]]) -> list[int]:
        """Return the rows that can be decoded; add the others to `skipped`."""
        for row in progress(range(len(self.source)), "looking at the images"):
            try:
                self._scales[row] = self.largest_side / min(self.source[row].size)
            except UnreadableImage as error:
                if on_error == "error":
                    raise UserError(f"{error}, or leave such images out with --on_error skip") from None
                skipped.append((printable(self.source.key(row)), printable(str(error))))
        return list(self._scales)

    def records(self, rows: Iterable[int]) -> Iterator[EncodedImage]:
        for row in rows:
            # The hash makes keys unique. Dots are replaced: WebDataset ends a key at the first one.
            label, key = int(self.source.labels[row]), self.source.key(row)
            stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(key).stem)[:40]
            digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:12]
            yield *self._encoded(row), label, f"{label:05d}/{stem}-{digest}"

    def _encoded(self, row: int) -> tuple[bytes, str]:
        path, scale, buffer = self.source.path(row), self._scales[row], io.BytesIO()
        extension = path.suffix[1:].lower()
        if scale >= 1 and extension in EXTENSIONS:
            return read_image(path), extension
        image = self.source[row]
        if scale >= 1:
            image.save(buffer, "PNG")
            return buffer.getvalue(), "png"
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=95)
        return buffer.getvalue(), "jpg"
