"""Image grids with row names or captions, and PNG and GIF files."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from aim_lightning.utils.files import atomic_path, write_bytes

TILE = 128  # pixels; images up to half as wide are enlarged by integer factors
WIDEST_NAME = 2.5  # image widths; longer row names are cut
GAP = 2  # pixels between images
LINE = 18  # pixels; height of a caption
COLUMNS = 8  # of captioned images
FRAME_MS, LAST_FRAME_MS = 150, 2000  # durations in a GIF


def labelled_grid(images_BCHW: Tensor, columns: int, row_names: list[str]) -> Tensor:
    """Arrange images in a grid with a name left of each row.

    Args:
        images_BCHW: uint8, row by row.
        columns: images per row.
        row_names: text left of each row, cut to 2.5 image widths; no margin if empty.

    Returns:
        uint8 (3, H, W).
    """
    images = _enlarged(images_BCHW)
    height = images.shape[-2] + GAP
    # TensorBoard shrinks a grid to a few hundred pixels: the text has to be large in comparison to the images.
    font = _font(max(12, height // 3), row_names)
    names = [_shortened(name, font, WIDEST_NAME * images.shape[-1]) for name in row_names]
    margin = 10 + max((int(font.getlength(name)) for name in names), default=-10)
    canvas = _paste(images, columns, margin)
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(names[: canvas.height // height]):
        draw.text((4, row * height + height // 2), name, fill="black", font=font, anchor="lm")
    return _tensor(canvas)


def captioned_grid(images_BCHW: Tensor, captions: list[str]) -> Tensor:
    """Arrange images in a grid with a caption below each.

    Args:
        images_BCHW: uint8.
        captions: one per image, cut to the width of the image.

    Returns:
        uint8 (3, H, W).
    """
    images, columns = _enlarged(images_BCHW), min(COLUMNS, len(images_BCHW))
    height, width = images.shape[-2] + LINE + GAP, images.shape[-1] + GAP
    canvas, font = _paste(images, columns, line=LINE), _font(12, captions)
    draw = ImageDraw.Draw(canvas)
    for i, (_, caption) in enumerate(zip(images, captions, strict=True)):
        position = (i % columns * width + 2, (i // columns + 1) * height - GAP - LINE // 2)
        draw.text(position, _shortened(caption, font, width - 4), fill="black", font=font, anchor="lm")
    return _tensor(canvas)


def _font(size: int, texts: list[str]) -> ImageFont.FreeTypeFont:
    """Return a narrow font, or one with accents, Greek and Cyrillic letters where the texts need them."""
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size)
    import matplotlib  # its data contain the font

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


def _paste(images_BCHW: Tensor, columns: int, margin: int = 0, line: int = 0) -> Image.Image:
    """Arrange images on white, with a margin left of the rows and a line of text below each image."""
    height, width = images_BCHW.shape[-2] + line + GAP, images_BCHW.shape[-1] + GAP
    canvas = Image.new("RGB", (margin + columns * width, -(-len(images_BCHW) // columns) * height), "white")
    for i, image in enumerate(images_BCHW):
        canvas.paste(_pil(image), (margin + i % columns * width, i // columns * height))
    return canvas


def _enlarged(images_BCHW: Tensor) -> Tensor:
    factor = max(1, TILE // images_BCHW.shape[-1])
    return images_BCHW.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _pil(image_CHW: Tensor) -> Image.Image:
    return Image.fromarray(image_CHW.permute(1, 2, 0).numpy())


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def save_gif(frames: list[Tensor], path) -> None:
    """Write an endless animation atomically.

    Args:
        frames: uint8 (3, H, W) each.
        path: of the GIF file.
    """
    images = [_pil(frame) for frame in frames]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def save_png(image_CHW: Tensor, path) -> None:
    """Write a uint8 image as a PNG file atomically."""
    write_bytes(path, png_bytes(image_CHW))


def png_bytes(image_CHW: Tensor) -> bytes:
    """Encode a uint8 image as PNG."""
    file = io.BytesIO()
    _pil(image_CHW).save(file, format="PNG")
    return file.getvalue()
