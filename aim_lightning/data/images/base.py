"""Base class of all image sources."""

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from aim_lightning.data.images.decode import MAX_PIXELS, decode, opening, read_image
from aim_lightning.utils.files import printable
from aim_lightning.utils.process import is_rank_zero

log = logging.getLogger(__name__)


@dataclass
class ImageRecord:
    """A decoded RGB image, its label, and its key: the file name or the key in its shard."""

    image: Image.Image
    label: int
    key: str


class ImageSource(ABC):
    """Map-style collection of labelled image files: `source[row]` decodes an image; safe in loader workers.

    A source stores images unchanged. Resizing and cropping belong to `ImageDataset`.

    Args:
        class_names: names by label.
        labels: labels by row.
        keys: keys by row, as bytes.
    """

    max_pixels: int = MAX_PIXELS

    def __init__(self, class_names: list[str], labels: Iterable[int], keys: Iterable[bytes]) -> None:
        self._class_names = class_names
        self._labels = np.fromiter(labels, dtype=np.int64)
        # One array of bytes: forked workers share its memory, while access to list items would copy it page by page.
        self._keys = np.array(list(keys), dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> ImageRecord:
        """Decode an image.

        Raises:
            UnreadableImage: the bytes cannot be decoded.
            UserError: the file cannot be read.
        """
        image = decode(self._content(row), self.location(row), self.max_pixels)
        return ImageRecord(image, int(self._labels[row]), self.key(row))

    def key(self, row: int) -> str:
        """Return the key of a row: its path below the root, or its key in the shard."""
        return os.fsdecode(self._keys[row])

    @property
    def class_names(self) -> list[str]:
        """Return class names by label."""
        return self._class_names

    @property
    def labels(self) -> np.ndarray:
        """Return the label of every row, (n,) int64."""
        return self._labels

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


@dataclass
class LeftOut:
    """Counts files that a source does not read, so that one line reports them."""

    count: int = 0
    first: str = ""

    def add(self, name: str, count: int = 1) -> None:
        """Count files.

        Args:
            name: path of the first one, or its name in a shard.
            count: number of files; 0 changes nothing.
        """
        if count and not self.count:
            self.first = name
        self.count += count

    def warn(self, where: object, reason: str) -> None:
        """Log the count and the first name on rank 0, if there is one.

        Args:
            where: the source.
            reason: the rule by which files are left out.
        """
        if self.count and is_rank_zero():
            log.warning("%s: %d files left out, first %s (%s)", where, self.count, printable(self.first), reason)


def sha256_json(parts: Iterable) -> str:
    """Return the hex sha256 of a sequence of JSON values.

    Args:
        parts: values that JSON supports.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()
