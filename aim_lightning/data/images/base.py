"""What every set of images offers, wherever it lies."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from aim_lightning.data.images.decode import decode


@dataclass
class ImageRecord:
    """An image in mode RGB, its label and the name of its file or key in its shard."""

    image: Image.Image
    label: int
    key: str


class ImageSource(ABC):
    """A map-style set of images: `source[row]` decodes one; safe in loader workers.

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
        """Decode one image.

        Raises:
            UnreadableImage: it cannot be decoded.
            UserError: the file that it lies in cannot be read.
        """
        return ImageRecord(decode(self._content(row), self._where(row)), int(self._labels[row]), self.key(row))

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
    def files(self) -> Iterable[Path]:
        """What the images lie in, in order."""

    @abstractmethod
    def _content(self, row: int) -> bytes:
        """The encoded image. Raises UserError where its file cannot be read."""

    @abstractmethod
    def _where(self, row: int) -> str:
        """Names the image in errors."""


def sha256_json(parts: Iterable) -> str:
    """Hex sha256 of a sequence of JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()
