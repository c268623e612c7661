"""The two pixel conventions: uint8 images in files and loaders, floats in [-1, 1] in models."""

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError


class NotFinite(UserError, ValueError):
    """Images of a network that diverged."""


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 pixels 0..255 of any shape to float32 in [-1, 1].

    Raises:
        ValueError: another dtype, which would not have that range.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"to_unit_range takes uint8 pixels, not {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [-1, 1] of any shape to the nearest uint8 pixels; what lies outside is clamped.

    The exact inverse of `to_unit_range`.

    Raises:
        NotFinite: NaN among the values.
        ValueError: a dtype that is no float.
    """
    if not images.is_floating_point():
        raise ValueError(f"to_uint8 takes floats in [-1, 1], not {images.dtype}")
    if images.isnan().any():
        raise NotFinite("images with NaN: the network that made them, or its input, has diverged")
    return round_pixels(images)


def round_pixels(images: Tensor) -> Tensor:
    """`to_uint8` without its checks, for which a GPU would have to be waited for."""
    # float32 before the arithmetic: bfloat16 cannot tell neighbouring pixels apart near 255.
    return ((images.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
