"""One's own images: a class-per-directory tree becomes training and validation shards.

An image's side follows from a hash of its file name alone: adding or removing others moves no image.
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
from aim_lightning.data.images.shard_writer import EXTENSIONS, MANIFEST, write_image_shards
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable, read_json
from aim_lightning.utils.progress import progress

ROWS_PER_SHARD = 1000
MADE_BY = "aim-lightning dataset"


@dataclass(frozen=True)
class SplitReport:
    """Images written by split, by class in training, and those left out (key and reason)."""

    rows: dict[str, int]
    class_names: list[str]
    train_per_class: list[int]
    skipped: list[tuple[str, str]]


def make_shards(
    directory: Path,
    out: Path,
    val_fraction: float,
    largest_side: int,
    on_error: str = "error",
) -> SplitReport:
    """Write `out`/train and `out`/val.

    Args:
        directory: class-per-directory tree.
        out: where to write; shards in it are replaced.
        val_fraction: share of the file names that goes to val, between 0 and 1.
        largest_side: an image whose shorter side is longer becomes so small, pixels (a JPEG of quality 95);
            the others keep their bytes where the shards allow their format, and become PNG where not.
        on_error: ``error``, or ``skip`` to leave unreadable images out and list them.

    Raises:
        UserError: an unreadable image, or a class with fewer than two images.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    refuse_foreign(out)
    source = DirectorySource(directory)
    stored, skipped = _Stored(source, largest_side), []
    everything = progress(range(len(source)), "looking at the images")
    kept = [row for row in everything if _readable(stored, row, on_error, skipped)]
    in_val = choose_val(source, kept, val_fraction)
    rows = {"train": [row for row in kept if row not in in_val], "val": [row for row in kept if row in in_val]}
    extra = {"made_by": MADE_BY, "skipped": [{"key": key, "reason": reason} for key, reason in skipped]}
    for split, chosen in rows.items():
        records = stored.records(progress(chosen, f"writing {split}"))
        write_image_shards(records, out / split, source.class_names, ROWS_PER_SHARD, extra)
    per_class = np.bincount(source.labels[rows["train"]], minlength=len(source.class_names)).tolist()
    return SplitReport({split: len(chosen) for split, chosen in rows.items()}, source.class_names, per_class, skipped)


def refuse_foreign(out: Path) -> None:
    """Raises UserError if `out` holds anything but an earlier result of `make_shards`, or a part of one."""
    for path in sorted(out.rglob("*")):
        ours = path.name[0] == "." or (path.is_dir() and path.parent == out and path.name in ("train", "val"))
        ours = ours or (path.parent.parent == out and path.match("images-*.tar"))
        if path.name == MANIFEST:
            ours = read_json(path, "image manifest").get("made_by") == MADE_BY
        if not ours:
            raise UserError(f"{out} holds {path.relative_to(out)}, which this command did not write; take another name")


def choose_val(source: DirectorySource, rows: list[int], val_fraction: float) -> set[int]:
    """Rows whose file name hashes below val_fraction; at least one a class on either side.

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
    """In [0, 1), from a file's name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") / 2**64


def _readable(stored: "_Stored", row: int, on_error: str, skipped: list[tuple[str, str]]) -> bool:
    try:
        stored.look(row)
    except UnreadableImage as error:
        if on_error == "error":
            raise UserError(f"{error}, or leave such images out with --on_error skip") from None
        skipped.append((printable(stored.source.key(row)), printable(str(error))))
        return False
    return True


class _Stored:
    """Images in the form in which shards hold them; `look` at each before its records are asked for."""

    def __init__(self, source: DirectorySource, largest_side: int) -> None:
        self.source, self.largest_side = source, largest_side
        self._scales: dict[int, float] = {}  # so that images which keep their bytes are decoded once

    def look(self, row: int) -> None:
        self._scales[row] = self.largest_side / min(self._image(row).size)

    def records(self, rows: Iterable[int]) -> Iterator[tuple[bytes, str, int, str]]:
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
        """Unique, and without the dots that end a key."""
        key = self.source.key(row)
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(key).stem)[:40]
        return f"{int(self.source.labels[row]):05d}/{stem}-{hashlib.sha256(os.fsencode(key)).hexdigest()[:12]}"
