"""Image grids with names beside the rows."""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from aim_lightning.utils.files import atomic_path, write_bytes

SMALLEST_TILE = 64  # pixels: smaller images are enlarged by whole factors, so that one can see them
CAPTIONED_TILE = 96  # likewise, wide enough for a class name
GAP = 2


def labelled_grid(images_BCHW: Tensor, columns: int, row_names: list[str]) -> Tensor:
    """One image of many.

    Args:
        images_BCHW: uint8, rows one after the other.
        columns: images a row.
        row_names: text at the left of each row; an empty list leaves the margin out.

    Returns:
        uint8 (3, H, W).
    """
    factor = max(1, SMALLEST_TILE // images_BCHW.shape[-1])
    images = images_BCHW.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    height, width = images.shape[-2] + GAP, images.shape[-1] + GAP
    rows = -(-len(images) // columns)
    font = ImageFont.load_default(max(12, height // 6))
    margin = 10 + max((int(font.getlength(name)) for name in row_names), default=-10)
    canvas = Image.new("RGB", (margin + columns * width, rows * height), "white")
    for i, image in enumerate(images):
        tile = Image.fromarray(image.permute(1, 2, 0).numpy())
        canvas.paste(tile, (margin + i % columns * width, i // columns * height))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(row_names[:rows]):
        draw.text((4, row * height + height // 2), name, fill="black", font=font, anchor="lm")
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)


def captioned_grid(images_BCHW: Tensor, captions: list[str], columns: int = 8) -> Tensor:
    """One image of many, each with its own text below.

    Args:
        images_BCHW: uint8.
        captions: one an image; what does not fit its width is cut.
        columns: images a row.

    Returns:
        uint8 (3, H, W).
    """
    factor = max(1, CAPTIONED_TILE // images_BCHW.shape[-1])
    images = images_BCHW.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    font, line = ImageFont.load_default(12), 18
    height, width = images.shape[-2] + line + GAP, images.shape[-1] + GAP
    canvas = Image.new("RGB", (min(columns, len(images)) * width, -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = i % columns * width, i // columns * height
        canvas.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), (left, top))
        while caption and font.getlength(caption) > width - 4:
            caption = caption[:-1]
        draw.text((left + 2, top + height - GAP - line // 2), caption, fill="black", font=font, anchor="lm")
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)


def save_gif(frames: list[Tensor], path, frame_ms: int = 150, last_ms: int = 2000) -> None:
    """Write uint8 images (3, H, W) as one animation without end, atomically; the last one stays for longer."""
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    durations = [frame_ms] * (len(frames) - 1) + [last_ms]
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def save_png(image_CHW: Tensor, path) -> None:
    """Write a uint8 image atomically."""
    write_bytes(path, png_bytes(image_CHW))


def png_bytes(image_CHW: Tensor) -> bytes:
    """A uint8 image as a PNG."""
    file = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(file, format="PNG")
    return file.getvalue()
