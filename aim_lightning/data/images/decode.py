"""Decode image files of any format to RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import require_regular

MAX_PIXELS = 178_956_970  # Pillow's own limit
BACKGROUND = "white"
ALLOW_LARGE = "images.max_pixels, in `dataset` with --max_pixels"
# Pillow warns from half of the limit on, with the path of a library; beyond the limit it raises an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(UserError):
    """An image whose bytes cannot be decoded; `--on_error skip` leaves it out."""


class ImageTooSmall(UnreadableImage):
    """An image that is smaller than the crop; `--on_error skip` leaves it out."""


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Convert disk errors of the block to a UserError; unlike an UnreadableImage it is never skipped.

    Args:
        path: image file for messages.

    Raises:
        UserError: the file is missing or cannot be read now.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} was listed but does not exist; restore it, or remove the link") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); fix the disk or permissions") from error


def read_image(path: Path) -> bytes:
    """Return the bytes of an image file.

    Args:
        path: the file.

    Raises:
        UserError: as in `opening`.
    """
    with opening(path):
        require_regular(path)
        return path.read_bytes()


def decode(content: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the bytes of an image file to RGB, or to RGBA if any pixel is not opaque.

    Args:
        content: the encoded image.
        where: location of the image for messages.
        max_pixels: largest size; a small file may decode to more memory than the machine has.

    Raises:
        UnreadableImage: the bytes are damaged or no image, or the image is too large.
    """
    if max_pixels != MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels / 2  # Pillow warns beyond this number and raises an error beyond twice
    try:
        with Image.open(io.BytesIO(content)) as image:
            return to_8_bit(image)
    except UnidentifiedImageError:
        reason = "no image format that Pillow supports"
    except Image.DecompressionBombError as error:
        fact = str(error).partition(",")[0]  # Image size (… pixels) exceeds limit of … pixels
        raise UnreadableImage(f"{where} is too large ({fact}); allow it with {ALLOW_LARGE}") from None
    except MemoryError:
        raise  # a fault of the machine, not of the image
    except Exception as error:  # Pillow's decoders raise almost any exception for damaged files
        reason = str(error) or type(error).__name__
    raise UnreadableImage(f"{where} is not a readable image ({reason}); restore or remove it")


def to_8_bit(image: Image.Image) -> Image.Image:
    """Return an RGB copy of a Pillow image of any mode, or an RGBA copy if any pixel is not opaque.

    The EXIF orientation is applied. 16-bit grey is divided by 257. For integer and float grey the range is the smallest
    of 0..1 (floats only), 0..255 and 0..65535 that contains all values; otherwise it is the range of the values
    themselves.

    Args:
        image: an open image.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises almost any exception for damaged EXIF data; the pixels are intact
        image = image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _deep_grey_to_8_bit(image)
    if image.mode == "La":  # Pillow converts this mode to LA only
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    # Many RGBA files are opaque: their alpha channel is not reported.
    return image if image.getchannel("A").getextrema()[0] < 255 else image.convert("RGB")


def background_rgb(color: str) -> tuple[int, int, int]:
    """Return the red, green and blue (0 to 255) of `images.background`.

    Args:
        color: a colour name of CSS, or ``#rrggbb``.

    Raises:
        UserError: another text.
    """
    try:
        rgb = ImageColor.getrgb(color)
    except ValueError:
        rgb = ()
    if len(rgb) != 3:  # none, or a colour with transparency
        raise UserError(f"images.background is {color!r}; use a colour name such as white, or '#rrggbb'")
    return rgb


def composite(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Return an RGBA image on a uniform background, as RGB.

    Args:
        image: mode RGBA.
        background: red, green and blue, 0 to 255.
    """
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    values = np.where(np.isfinite(values), values, 0)  # NaN and infinity would spoil the range
    low, high = min(values.min(), 0), max(values.max(), 0)
    limits = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    if low == 0 and high <= limits[-1]:
        high = next(limit for limit in limits if high <= limit)
    # A constant image of zeros keeps the limit 1 or 255 as its range, so that nothing is divided by 0.
    grey = Image.fromarray(np.rint((values - low) / (high - low) * 255).astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey
