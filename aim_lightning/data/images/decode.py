"""From an image file of any kind to pixels in mode RGB."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aim_lightning.utils.errors import UserError


class UnreadableImage(UserError):
    """One image whose bytes cannot be decoded; the others may be fine."""


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Inside, an error of the disk names the image; it is no UnreadableImage, which may be left out.

    Raises:
        UserError: the file is gone or cannot be read now.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{path} was listed but is not there; restore it, or remove the link, and start again"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path} cannot be read ({reason}); mend the disk or its permissions, and start again"
        ) from error


def read_image(path: Path) -> bytes:
    """Bytes of an image file; raises UserError as `opening` does."""
    with opening(path):
        return path.read_bytes()


def decode(content: bytes, where: str) -> Image.Image:
    """An image file's bytes as RGB; `where` names it in errors.

    Raises:
        UnreadableImage: damaged or no image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return to_rgb(image)
    except UnidentifiedImageError:
        reason = "no image format that Pillow knows"
    except MemoryError:
        raise  # the machine's, not the image's
    except Exception as error:  # Pillow's decoders raise almost anything for damaged files
        reason = str(error) or type(error).__name__
    raise UnreadableImage(f"{where} is not a readable image ({reason}); restore or remove it")


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of any Pillow image as it is meant to be seen, in mode RGB.

    The camera's orientation is applied and transparency is laid on white. 16-bit grey is divided by 257; for
    integer and float grey the range is the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all
    values, else the range of the values themselves.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises almost anything for damaged EXIF data; the pixels are fine all the same
        image = image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _deep_grey_to_8_bit(image)
    if image.mode == "La":  # Pillow converts this one to LA only
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    values = np.where(np.isfinite(values), values, 0)
    low, high = min(values.min(), 0), max(values.max(), 0)
    usual = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    if low == 0 and high <= usual[-1]:
        high = next(limit for limit in usual if high <= limit)
    pixels = np.rint((values - low) / (high - low) * 255)
    if isinstance(see_through := image.info.get("transparency"), int):
        pixels[values == see_through] = 255
    return Image.fromarray(pixels.astype(np.uint8))
