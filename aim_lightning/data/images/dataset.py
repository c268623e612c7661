"""Image datasets: an image source with the deterministic transform of an experiment."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor

from aim_lightning.data.images.decode import BACKGROUND, MAX_PIXELS, ImageTooSmall, background_rgb
from aim_lightning.data.images.directory import ImageSource, open_source
from aim_lightning.data.images.transforms import ImageTransform
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments


@dataclass(frozen=True)
class Images:
    """Configuration of an experiment's images: paths of both splits, and size after cropping.

    `open` returns a split as an `ImageDataset`.

    Args:
        train: training images: a class-per-directory tree, a directory of WebDataset shards, a shard, shards with
            braces such as ``shard-{000..009}.tar``, or an archive of ImageNet.
        val: the same for validation.
        image_size: height and width of the tokenizer's input, pixels.
        resize: shorter side after resizing, pixels; null = original size.
        pad: black border added on each side, pixels.
        crop: ``center``, or ``adm_center``, which itself resizes the shorter side to image_size.
        max_pixels: larger images are refused; the default is Pillow's protection against decompression bombs.
        background: colour behind transparent pixels, a name such as ``white`` or ``#rrggbb``.

    Raises:
        UserError: a value out of range.
    """

    train: str
    val: str
    image_size: int = 256
    resize: int | None = None
    pad: int = 0
    crop: Literal["center", "adm_center"] = "center"
    max_pixels: int = MAX_PIXELS
    background: str = BACKGROUND

    def __post_init__(self) -> None:
        check_arguments("images.", Images, vars(self), Range(1), pad=Range(0))

    def open(self, split: str) -> "ImageDataset":
        """Open a split; later calls return the same object.

        Args:
            split: ``train`` or ``val``.

        Raises:
            UserError: the path is missing or has no images, or the background is unknown.
        """
        # Not a dataclass field: the cache takes no part in comparison, repr and pickling.
        opened = self.__dict__.setdefault("_opened", {})
        if split not in opened:
            transform = ImageTransform(self.image_size, resize=self.resize, pad=self.pad, crop=self.crop)
            background = background_rgb(self.background)
            source = open_source(getattr(self, split))
            source.max_pixels, source.background = self.max_pixels, background
            opened[split] = ImageDataset(source, transform)
        return opened[split]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


class ImageDataset:
    """Cropped images of a split by row: uint8 (3, H, W) and labels, without random choices.

    Args:
        source: the images in their original size.
        transform: a transform without random choices.
    """

    def __init__(self, source: ImageSource, transform: ImageTransform) -> None:
        self.source = source
        self.transform = transform
        self.class_names = source.class_names
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """Return a text that identifies images, transform and background, for cache keys."""
        return f"{self.source.fingerprint}/{self.geometry}"

    @property
    def geometry(self) -> str:
        """Return a text that identifies transform and background, for cache keys and protocols."""
        red, green, blue = self.source.background
        # White is left out: shards and statistics of earlier versions, which knew no other colour, stay valid.
        background = "" if self.source.background == background_rgb(BACKGROUND) else f"/#{red:02x}{green:02x}{blue:02x}"
        return f"{self.transform!r}{background}"

    def key(self, row: int) -> str:
        """Return the key of an image in its source."""
        return self.source.key(row)

    def batch(self, rows) -> tuple[Tensor, Tensor]:
        """Return uint8 images (B, 3, H, W) and int64 labels (B,).

        Args:
            rows: B row numbers.

        Raises:
            UserError: an image is unreadable.
        """
        images = [transform_row(self.source, row, [self.transform])[0] for row in rows]
        return torch.stack(images), torch.from_numpy(self.labels[list(rows)])


def transform_row(source: ImageSource, row: int, transforms: list[ImageTransform], seed: int = 0) -> list[Tensor]:
    """Decode an image and return its result for each transform, uint8 (3, H, W).

    Args:
        source: the images.
        row: row of the image.
        transforms: transforms of the decoded image.
        seed: seed of random crops and flips.

    Raises:
        ImageTooSmall: the image is smaller than a crop; the message contains its location.
        UnreadableImage: it cannot be decoded.
        UserError: its file cannot be read.
    """
    image = source[row]
    try:
        return [transform(image, seed) for transform in transforms]
    except ImageTooSmall as error:
        raise ImageTooSmall(f"{source.location(row)}: {error}") from None


def same_classes(train: ImageDataset | ImageSource, val: ImageDataset | ImageSource, where: str) -> None:
    """Check that both splits have the same class names in the same order.

    Args:
        train: training split.
        val: validation split.
        where: configuration key for messages.

    Raises:
        UserError: the class names differ.
    """
    for label, names in enumerate(zip_longest(train.class_names, val.class_names)):
        if len(set(names)) > 1:
            first, second = ("no class" if name is None else repr(name) for name in names)
            counts = f"{len(train.class_names)} and {len(val.class_names)} classes"
            fact = f"{where}: label {label} is {first} in train but {second} in val"
            raise UserError(f"{fact} ({counts}); set paths with equal classes")
