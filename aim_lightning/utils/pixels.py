"""Conversion between uint8 pixels, used in files and loaders, and floats in [-1, 1], used in models."""

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError

ROUNDING = "nearest of (x + 1) * 127.5, half to even, clamped to 0..255"  # of to_uint8, for protocols


def to_unit_range(images: Tensor) -> Tensor:
    """Convert uint8 pixels 0..255 of any shape to float32 in [-1, 1].

    Raises:
        ValueError: another dtype, whose range would differ.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"to_unit_range takes uint8 pixels, not {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] of any shape to the nearest uint8 pixels, with clamping.

    It is the exact inverse of `to_unit_range`.

    Raises:
        UserError: NaN among the values, from a network that diverged.
        ValueError: another dtype than a float.
    """
    if not images.is_floating_point():
        raise ValueError(f"to_uint8 takes floats in [-1, 1], not {images.dtype}")
    if images.isnan().any():
        raise UserError("images with NaN: the network that made them, or its input, has diverged")
    return round_pixels(images)


def round_pixels(images: Tensor) -> Tensor:
    """Convert like `to_uint8`, without the check that would wait for a GPU."""
    # float32 before the arithmetic: bfloat16 cannot represent all integers near 255.
    return ((images.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
