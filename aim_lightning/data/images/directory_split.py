"""Convert a class-per-directory tree to training and validation shards.

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

from aim_lightning.data.images.decode import UnreadableImage, decode, read_image
from aim_lightning.data.images.directory import DirectorySource
from aim_lightning.data.images.shard_writer import EXTENSIONS, MANIFEST, EncodedImage, write_image_shards
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable, read_json
from aim_lightning.utils.progress import progress

ROWS_PER_SHARD = 1000
MADE_BY = "aim-lightning dataset"


@dataclass(frozen=True)
class SplitReport:
    """Result of a split: images per split, training images per class, and (key, reason) of those left out."""

    rows: dict[str, int]
    class_names: list[str]
    train_per_class: list[int]
    skipped: list[tuple[str, str]]


def make_shards(
    directory: Path, out: Path, val_fraction: float, largest_side: int, on_error: str = "error"
) -> SplitReport:
    """Write `out`/train and `out`/val.

    Args:
        directory: class-per-directory tree.
        out: directory to write; shards in it are replaced.
        val_fraction: expected share of the images in val, between 0 and 1.
        largest_side: an image with a longer shorter side is resized to this, pixels, as a JPEG of quality 95. The
            others keep their bytes if shards support their format, and become PNG otherwise.
        on_error: ``error``, or ``skip`` to leave unreadable images out and list them.

    Raises:
        UserError: an unreadable image, or a class with fewer than two images.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    refuse_foreign(out)
    source = DirectorySource(directory)
    encoder, skipped = _ShardEncoder(source, largest_side), []
    all_rows = progress(range(len(source)), "looking at the images")
    readable = [row for row in all_rows if _is_readable(encoder, row, on_error, skipped)]
    in_val = choose_val(source, readable, val_fraction)
    rows = {"train": [row for row in readable if row not in in_val], "val": [row for row in readable if row in in_val]}
    extra = {"made_by": MADE_BY, "skipped": [{"key": key, "reason": reason} for key, reason in skipped]}
    for split, split_rows in rows.items():
        records = encoder.records(progress(split_rows, f"writing {split}"))
        write_image_shards(records, out / split, source.class_names, ROWS_PER_SHARD, extra)
    per_class = np.bincount(source.labels[rows["train"]], minlength=len(source.class_names)).tolist()
    return SplitReport({split: len(items) for split, items in rows.items()}, source.class_names, per_class, skipped)


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


def choose_val(source: DirectorySource, rows: list[int], val_fraction: float) -> set[int]:
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


def _is_readable(encoder: "_ShardEncoder", row: int, on_error: str, skipped: list[tuple[str, str]]) -> bool:
    try:
        encoder.check(row)
    except UnreadableImage as error:
        if on_error == "error":
            raise UserError(f"{error}, or leave such images out with --on_error skip") from None
        skipped.append((printable(encoder.source.key(row)), printable(str(error))))
        return False
    return True


class _ShardEncoder:
    """Encodes images as shards store them; call `check` for each row before `records`."""

    def __init__(self, source: DirectorySource, largest_side: int) -> None:
        self.source = source
        self.largest_side = largest_side
        self._scales: dict[int, float] = {}  # kept from `check`: images that keep their bytes are decoded only once

    def check(self, row: int) -> None:
        self._scales[row] = self.largest_side / min(self._image(row).size)

    def records(self, rows: Iterable[int]) -> Iterator[EncodedImage]:
        for row in rows:
            yield *self._encoded(row), int(self.source.labels[row]), self._key(row)

    def _path(self, row: int) -> Path:
        return self.source.root / self.source.key(row)

    def _image(self, row: int) -> Image.Image:
        return decode(read_image(self._path(row)), str(self._path(row)))

    def _encoded(self, row: int) -> tuple[bytes, str]:
        path, scale, buffer = self._path(row), self._scales[row], io.BytesIO()
        extension = path.suffix[1:].lower()
        if scale >= 1 and extension in EXTENSIONS:
            return read_image(path), extension
        image = self._image(row)
        if scale >= 1:
            image.save(buffer, "PNG")
            return buffer.getvalue(), "png"
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=95)
        return buffer.getvalue(), "jpg"

    def _key(self, row: int) -> str:
        # The hash makes keys unique. Dots are replaced: WebDataset ends a key at the first one.
        key = self.source.key(row)
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(key).stem)[:40]
        return f"{int(self.source.labels[row]):05d}/{stem}-{hashlib.sha256(os.fsencode(key)).hexdigest()[:12]}"
