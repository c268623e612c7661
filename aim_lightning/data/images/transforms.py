"""Transform decoded images to the network's input size."""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from aim_lightning.data.images.decode import ImageTooSmall
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments

ADM_SMALLEST_CROP = 0.8  # of the shorter side


@dataclass(frozen=True)
class ImageTransform:
    """Resize, pad, crop and flip, in this order; the repr with all settings is a cache key.

    Args:
        image_size: height and width of the result, pixels.
        resize: shorter side after resizing (Lanczos), pixels; None = original size.
        pad: black border added on each side, pixels.
        crop: position of the square: ``center``, ``random``, or ``none`` (the image must have the right size). Two
            crops replace `resize`: ``adm_center`` resizes the shorter side to image_size (see `adm_resize`).
            ``adm_random`` resizes it to a random size between image_size and image_size / 0.8, then crops at random
            (openai/guided-diffusion, image_datasets.py, random_crop_arr).
        flip: mirror each image with probability 0.5.

    Raises:
        UserError: the values contradict each other.
    """

    image_size: int
    resize: int | None = None
    pad: int = 0
    crop: Literal["center", "adm_center", "random", "adm_random", "none"] = "center"
    flip: bool = False

    def __post_init__(self) -> None:
        check_arguments("", ImageTransform, vars(self), Range(1), pad=Range(0))
        if self.crop.startswith("adm_") and self.resize is not None:
            raise UserError(f"crop {self.crop} resizes by itself, but resize is {self.resize}; set resize null")
        if self.resize is not None and (side := self.resize + 2 * self.pad) < self.image_size:
            fact = f"resize {self.resize} with pad {self.pad} gives {side} pixels"
            raise UserError(f"{fact}, less than image_size {self.image_size}; raise resize or pad")

    def __call__(self, image: Image.Image, generator_seed: int) -> Tensor:
        """Transform an RGB image to uint8 (3, image_size, image_size).

        Args:
            image: mode RGB.
            generator_seed: seed of random crop and flip, between -2^63 and 2^64 - 1.

        Raises:
            ImageTooSmall: the image is too small, or with crop ``none`` of another size.
        """
        image = self._fit(image)
        if not self.crop.startswith("adm_"):
            self._check_size(*image.size)
        if self.crop not in ("random", "adm_random") and not self.flip:
            return self._finish(image)
        # torchvision reads the global generator: fork it, so that training's random state stays.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also reseed the GPUs, whose state is not restored here.
            torch.default_generator.manual_seed(generator_seed)
            return self._finish(image)

    @cached_property
    def _fit(self) -> v2.Compose:
        pad = v2.Pad(self.pad, fill=0)
        if self.crop == "adm_center":
            return v2.Compose([pad, v2.Lambda(partial(adm_resize, shorter_side=self.image_size))])
        resize = [] if self.resize is None else [v2.Resize(self.resize, v2.InterpolationMode.LANCZOS)]
        return v2.Compose([*resize, pad])

    @cached_property
    def _finish(self) -> v2.Compose:
        size = self.image_size
        crops = {
            "center": [v2.CenterCrop(size)],
            "adm_center": [v2.Lambda(partial(_cut_center, size=size))],
            "random": [v2.RandomCrop(size)],
            "adm_random": [v2.Lambda(partial(_adm_random_resize, smallest=size)), v2.RandomCrop(size)],
            "none": [],
        }
        flips = [v2.RandomHorizontalFlip(0.5)] if self.flip else []  # it advances the generator even at p = 0
        return v2.Compose([*crops[self.crop], *flips, v2.PILToTensor()])

    def _check_size(self, width: int, height: int) -> None:
        fact, size = f"an image is {width}x{height} after resize and pad", self.image_size
        if self.crop == "none" and (width, height) != (size, size):
            raise ImageTooSmall(f"{fact}, not image_size {size}; set crop to center or random")
        if min(width, height) < size:
            raise ImageTooSmall(f"{fact}, less than image_size {size}; set resize (for example to {size}) or pad")


def adm_resize(image: Image.Image, shorter_side: int) -> Image.Image:
    """Resize as ADM does: halve by averaging while at least twice too large, then resize bicubically.

    Args:
        image: RGB image.
        shorter_side: shorter side of the result, pixels.

    Source: openai/guided-diffusion, image_datasets.py, center_crop_arr; LlamaGen and DiT use the same.
    """
    while min(image.size) >= 2 * shorter_side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter_side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _adm_random_resize(image: Image.Image, smallest: int) -> Image.Image:
    largest = math.ceil(smallest / ADM_SMALLEST_CROP)
    return adm_resize(image, int(torch.randint(smallest, largest + 1, ())))


def _cut_center(image: Image.Image, size: int) -> Image.Image:
    # ADM rounds down, whereas torchvision's centre crop rounds to the nearest even number.
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
