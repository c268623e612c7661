"""Base classes of all image sources, and the search for image files."""

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from aim_lightning.data.images.decode import (
    BACKGROUND,
    MAX_PIXELS,
    background_rgb,
    composite,
    decode,
    opening,
    read_image,
)
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable
from aim_lightning.utils.process import is_rank_zero

log = logging.getLogger(__name__)
# Pillow registers these formats but needs other programs to decode them.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_OF_THE_SYSTEM = {"Thumbs.db", "desktop.ini"}
_TRAIN, _VAL = ("train", "training"), ("val", "valid", "validation", "dev", "test", "testing")


class ImageSource(ABC):
    """Labelled image files by row: `source[row]` decodes one to RGB; safe in loader workers.

    A source stores images unchanged. Resizing and cropping belong to `ImageDataset`.

    Args:
        class_names: names by label.
        labels: labels by row, kept as (n,) int64.
        keys: keys by row, as bytes.
    """

    max_pixels: int = MAX_PIXELS
    background: tuple[int, int, int] = background_rgb(BACKGROUND)
    transparent: int = 0  # images with transparent pixels that this process has decoded

    def __init__(self, class_names: list[str], labels: Iterable[int], keys: Iterable[bytes]) -> None:
        self.class_names = class_names
        self.labels = np.fromiter(labels, dtype=np.int64)
        # One array of bytes: forked workers share its memory, while access to list items would copy it page by page.
        self._keys = np.array(list(keys), dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Image.Image:
        """Decode an image to RGB; transparent pixels are composited on the background.

        Raises:
            UnreadableImage: the bytes cannot be decoded.
            UserError: the file cannot be read.
        """
        image = decode(self._content(row), self.location(row), self.max_pixels)
        if image.mode != "RGBA":
            return image
        self.transparent += 1
        return composite(image, self.background)

    def key(self, row: int) -> str:
        """Return the key of a row: its path below the root, or its key in the shard."""
        return os.fsdecode(self._keys[row])

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hex sha256 that identifies the content, independent of its path."""

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """Return the files that contain the images, in order."""

    @abstractmethod
    def location(self, row: int) -> str:
        """Return the file (and the key in a tar) of an image, for messages."""

    @abstractmethod
    def _content(self, row: int) -> bytes:
        """Return the encoded image; raise UserError if its file cannot be read."""


class FileSource(ImageSource):
    """Images that are files below a root; their keys are POSIX paths relative to it."""

    root: Path

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 over path below the root and size in bytes of every image."""
        return sha256_json([self.key(row), self._size(row)] for row in range(len(self)))

    def files(self) -> Iterator[Path]:
        """Return the image files."""
        return (self.path(row) for row in range(len(self)))

    def path(self, row: int) -> Path:
        """Return the file of an image."""
        return self.root / self.key(row)

    def location(self, row: int) -> str:
        """Return the path of an image."""
        return str(self.path(row))

    def _size(self, row: int) -> int:
        path = self.path(row)
        with opening(path):
            return path.stat().st_size

    def _content(self, row: int) -> bytes:
        return read_image(self.path(row))


def warn_left_out(where: object, names: list[str], reason: str) -> None:
    """Log the number of files that a source does not read, and the first name, on rank 0.

    Args:
        where: the source.
        names: paths of the files, or their names in a shard.
        reason: the rule by which files are left out.
    """
    if names and is_rank_zero():
        log.warning("%s: %d files left out, first %s (%s)", where, len(names), printable(names[0]), reason)


def sha256_json(parts: Iterable) -> str:
    """Return the hex sha256 of a sequence of JSON values.

    Args:
        parts: values that JSON supports.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


@cache
def image_suffixes() -> set[str]:
    """Return the lower-case suffixes of the formats that Pillow decodes, with their dot."""
    formats = Image.registered_extensions()
    return {suffix for suffix, name in formats.items() if name in Image.OPEN and name not in _NOT_DECODED}


def image_files(
    directory: Path, visited: set[tuple[int, int]], left_out: list[str], suffixes: Container[str] | None = None
) -> Iterator[str]:
    """Yield POSIX paths of the image files below a directory; directory links are followed.

    Args:
        directory: directory to walk. Names that start with a dot are ignored.
        visited: `identity` of directories to leave out: a link to a parent would repeat images under a wrong label.
        left_out: receives the paths of all other files.
        suffixes: of image files, lower-case with their dot; None = those of `image_suffixes`.

    Raises:
        UserError: a directory cannot be read.
    """
    suffixes = image_suffixes() if suffixes is None else suffixes
    visited = visited | {identity(directory)}
    for parent, directories, files in os.walk(directory, followlinks=True, onerror=_raise):
        # os.walk descends into the names that remain in its list.
        kept = []
        for name in directories:
            if name[0] != "." and (directory_id := identity(Path(parent, name))) not in visited:
                visited.add(directory_id)
                kept.append(name)
        directories[:] = kept
        for name in files:
            if name[0] == "." or name in _OF_THE_SYSTEM:
                continue
            path = Path(parent, name).relative_to(directory).as_posix()
            if os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122 (a million names)
                yield path
            else:
                left_out.append(path)


def identity(directory: Path) -> tuple[int, int]:
    """Return device and inode of a directory.

    Raises:
        UserError: the directory cannot be read.
    """
    try:
        return (status := directory.stat()).st_dev, status.st_ino
    except OSError as error:  # removed since it was listed
        _raise(error)


def split_directories(root: Path) -> dict[str, Path]:
    """Return the directories of ``train`` and ``val`` if a root contains splits instead of classes.

    Args:
        root: directory with `train/`, and perhaps `val/` (validation, dev) or `test/`. A root with other directories
            but no validation split contains classes.
    """
    names = {entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."}
    train = next((name for name in _TRAIN if name in names), None)
    val = next((name for name in _VAL if name in names), None)
    if train is None or (val is None and len(names) > 1):
        return {}
    return {"train": root / train} | ({"val": root / val} if val else {})


def _raise(error: OSError) -> NoReturn:
    reason = error.strerror or error
    raise UserError(f"{error.filename} cannot be read ({reason}); fix its permissions or the disk") from error
