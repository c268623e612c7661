"""Images as the tokenizer sees them: a source with its geometry, without anything random."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_lightning.data.images.directory import ImageSource, open_source
from aim_lightning.data.images.transforms import ImageTransform
from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Images:
    """The image data of an experiment.

    Args:
        train: training images: a class-per-directory tree, WebDataset image shards, or an archive of ImageNet.
        val: the same for validation.
        image_size: height and width that the tokenizer sees, pixels.
        resize: shorter side after resizing, pixels; null leaves the size.
        pad: black border added on each side, pixels.
        crop: ``center``, or ``adm_center``, which resizes by itself so that the shorter side is image_size.
    """

    train: str
    val: str
    image_size: int = 256
    resize: int | None = None
    pad: int = 0
    crop: str = "center"

    def open(self, split: str) -> "ImageDataset":
        """`train` or `val`, each image cut from its centre; opened once, later calls give the same set.

        Raises:
            UserError: the directory is missing or holds no images, or there is no such crop.
        """
        opened = self.__dict__.setdefault("_opened", {})  # not a field: no part of what compares and is printed
        if split not in opened:
            if self.crop not in ("center", "adm_center"):
                raise UserError(f"images.crop is {self.crop!r}; use center or adm_center")
            transform = ImageTransform(self.image_size, resize=self.resize, pad=self.pad, crop=self.crop)
            opened[split] = ImageDataset(open_source(getattr(self, split)), transform)
        return opened[split]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


class ImageDataset:
    """uint8 images (3, H, W) and labels by row."""

    def __init__(self, source: ImageSource, transform: ImageTransform) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_names(self) -> list[str]:
        """By label."""
        return self.source.class_names

    @property
    def labels(self) -> np.ndarray:
        """Of every row, (n,) int64."""
        return self.source.labels

    @property
    def fingerprint(self) -> str:
        """Identifies images and geometry; keys caches."""
        return f"{self.source.fingerprint}/{self.transform!r}"

    def key(self, row: int) -> str:
        """Name of the image in its source."""
        return self.source.key(row)

    def batch(self, rows) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W) and int64 labels (B,).

        Raises:
            UserError: an unreadable image.
        """
        records = [self.source[row] for row in rows]
        images = torch.stack([self.transform(record.image, 0) for record in records])
        return images, torch.tensor([record.label for record in records], dtype=torch.int64)

    def batches(self, batch_size: int, rows: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows (or the given ones) in order."""
        rows = range(len(self)) if rows is None else rows
        for start in range(0, len(rows), batch_size):
            yield self.batch(rows[start : start + batch_size])


def same_classes(train: ImageDataset, val: ImageDataset, where: str) -> None:
    """Raises UserError unless both splits name the same classes in the same order."""
    for label, names in enumerate(zip_longest(train.class_names, val.class_names)):
        if len(set(names)) > 1:
            ours, theirs = ("no class" if name is None else repr(name) for name in names)
            counts = f"{len(train.class_names)} and {len(val.class_names)} classes"
            raise UserError(
                f"{where}: label {label} is {ours} in train but {theirs} in val ({counts}); give both the same classes"
            )
