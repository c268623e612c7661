"""Images, arrays and tar files for the tests of data."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    """Return an RGB image of random pixels; `size` is (width, height)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def save_noise(path: Path, seed: int = 0, size: tuple[int, int] = (9, 7)) -> None:
    """Write such an image; its directory is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed, size).save(path)


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Return the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    """Return a tar file with the content of each member by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def members_of(path: Path) -> dict[str, bytes]:
    """Return the content of each member of a tar file by name."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}
