"""Pictures by row: a tree with a folder for each class, or a folder of tar shards."""

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aim_lightning.data.images.shards import (
    MANIFEST,
    ShardFiles,
    ShardRow,
    index_shard,
    load_manifest,
    shard_paths,
)
from aim_lightning.utils.errors import UserError

# Pillow knows the names of these, but needs other programs to decode them.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@dataclass
class ImageRecord:
    """A picture in mode RGB, its label and the name of its file or key in its shard."""

    image: Image.Image
    label: int
    key: str


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of any Pillow picture as it is meant to be seen, in mode RGB.

    The camera's orientation is applied and transparency is laid on white. 16-bit grey is divided by 257; for
    integer and float grey the range is the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all
    values, else the range of the values themselves.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises almost anything for damaged EXIF data; the pixels are fine all the same
        image = image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _deep_grey_to_8_bit(image)
    if image.mode == "La":  # Pillow converts this one to LA only
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    values = np.where(np.isfinite(values), values, 0)
    low, high = min(values.min(), 0), max(values.max(), 0)
    usual = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    if low == 0 and high <= usual[-1]:
        high = next(limit for limit in usual if high <= limit)
    pixels = np.rint((values - low) / (high - low) * 255)
    if isinstance(see_through := image.info.get("transparency"), int):
        pixels[values == see_through] = 255
    return Image.fromarray(pixels.astype(np.uint8))


class ImageSource(ABC):
    """A map-style set of pictures: `source[row]` decodes one; safe in loader workers.

    Args:
        class_names: by label.
        labels: one a row.
        keys: name of each row, as bytes.
    """

    def __init__(self, class_names: list[str], labels: Iterable[int], keys: Iterable[bytes]) -> None:
        self._class_names = class_names
        self._labels = np.fromiter(labels, dtype=np.int64)
        # One array of bytes: forked workers share its pages, while every look at a list's items copies them.
        self._keys = np.array(list(keys), dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> ImageRecord:
        """Decode one picture.

        Raises:
            UserError: it cannot be read.
        """
        return ImageRecord(_decode(self._open(row), self._where(row)), int(self._labels[row]), self.key(row))

    def key(self, row: int) -> str:
        """The row's name: path below the root, or key in the shard."""
        return os.fsdecode(self._keys[row])

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return self._class_names

    @property
    def labels(self) -> np.ndarray:
        """Label of every row, (n,) int64."""
        return self._labels

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex sha256 that identifies the content, wherever it lies."""

    @abstractmethod
    def _open(self, row: int) -> Path | BinaryIO:
        """What Pillow can open."""

    @abstractmethod
    def _where(self, row: int) -> str:
        """Names the picture in errors."""


def _decode(file: Path | BinaryIO, where: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return to_rgb(image)
    except UnidentifiedImageError:
        reason = "no picture format that Pillow knows"
    except Exception as error:  # Pillow's decoders raise almost anything for damaged files
        reason = str(error) or type(error).__name__
    raise UserError(f"{where} is not a readable picture ({reason}); restore or remove it")


class FolderSource(ImageSource):
    """A tree `root/CLASS/**/picture`: class folders sorted by name are labels 0, 1, and so on.

    Pictures come class by class, sorted by path. Names that begin with a dot are left out.

    Raises:
        UserError: no such folder, no class folders, or one without pictures.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"picture folder {self.root} does not exist or is no folder; see data/README.md")
        classes = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not classes:
            raise UserError(f"{self.root} has no class folders; put the pictures into {self.root}/CLASS_NAME/")
        paths, labels = [], []
        for label, name in enumerate(classes):
            found = sorted(_pictures_below(self.root / name))
            if not found:
                raise UserError(f"class folder {self.root / name} holds no pictures; fill or remove it")
            paths += [os.fsencode(f"{name}/{path}") for path in found]
            labels += [label] * len(found)
        super().__init__(classes, labels, paths)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every picture's path below the root and its size in bytes."""
        lines = ([self.key(row), (self.root / self.key(row)).stat().st_size] for row in range(len(self)))
        return _sha256(lines)

    def _open(self, row: int) -> Path:
        return self.root / self.key(row)

    def _where(self, row: int) -> str:
        return str(self.root / self.key(row))


def _pictures_below(folder: Path) -> Iterator[str]:
    """Paths below `folder`, with /, of files that Pillow can decode by suffix; folder links are followed."""
    formats = Image.registered_extensions()
    suffixes = {s for s, name in formats.items() if name in Image.OPEN and name not in _NOT_DECODED}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in files:
            if name[0] != "." and os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122 (a million names)
                yield Path(place, name).relative_to(folder).as_posix()


class ShardSource(ImageSource):
    """A folder of picture shards (see `shards`), in the order of the manifest or else of the shards' names.

    Without a manifest the classes are called "0" to "n-1", n being the largest label plus 1.

    Raises:
        UserError: damaged shard, wrong label, or manifest and shards disagree.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(path)
        self._manifest, self._files = load_manifest(self.folder), ShardFiles()
        self.shards = self._listed() if self._manifest else shard_paths(self.folder)
        if not self.shards:
            raise UserError(f"{self.folder} holds no .tar shards; see data/README.md for the layout")
        rows = [(number, row) for number, shard in enumerate(self.shards) for row in self._index(number, shard)]
        if not rows:
            raise UserError(f"the shards in {self.folder} hold no pictures; write them again")
        # (n, 3): number of the shard, offset in it, bytes.
        self._places = np.array([(number, row.offset, row.size) for number, row in rows], dtype=np.int64)
        classes = max(row.label for _, row in rows) + 1
        names = self._manifest["class_names"] if self._manifest else [str(label) for label in range(classes)]
        super().__init__(names, (row.label for _, row in rows), (os.fsencode(row.key) for _, row in rows))

    def _listed(self) -> list[Path]:
        return [self.folder / shard["name"] for shard in self._manifest["shards"]]

    def _index(self, number: int, shard: Path) -> list[ShardRow]:
        rows = index_shard(shard)
        classes = None
        if self._manifest:
            expected, classes = self._manifest["shards"][number]["rows"], len(self._manifest["class_names"])
            if len(rows) != expected:
                raise UserError(
                    f"shard {shard} has {len(rows)} rows, {self.folder / MANIFEST} says {expected}; "
                    "restore the shard or write the set again"
                )
        for row in rows:
            if row.label < 0 or (classes is not None and row.label >= classes):
                limit = "labels count from 0" if classes is None else f"{MANIFEST} names {classes} classes"
                raise UserError(f"shard {shard}, key {row.key}: label {row.label} is out of range, {limit}")
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over class names and the manifest's hashes of the shards, else shard names and sizes."""
        if self._manifest:
            return _sha256([self.class_names, *(shard["sha256"] for shard in self._manifest["shards"])])
        return _sha256([shard.name, shard.stat().st_size] for shard in self.shards)

    def _open(self, row: int) -> BinaryIO:
        number, offset, size = self._places[row].tolist()
        try:
            return io.BytesIO(self._files.read(self.shards[number], offset, size))
        except OSError as error:
            raise UserError(f"{self._where(row)} cannot be read ({error}); restore the shard") from error

    def _where(self, row: int) -> str:
        return f"shard {self.shards[self._places[row][0]]}, key {self.key(row)}"


def _sha256(parts: Iterable) -> str:
    """Of a sequence of JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


def open_source(path: str | Path) -> ImageSource:
    """The pictures at `path`: shards when the folder holds .tar files (or their manifest), else classes.

    Raises:
        UserError: nothing there, or no layout that we know.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise UserError(
            f"picture set {folder} {what}; give a folder of class folders or of tar shards (data/README.md), "
            "or try data/fashion_mnist_mini/train"
        )
    if shard_paths(folder) or (folder / MANIFEST).exists():
        return ShardSource(folder)
    return FolderSource(folder)
