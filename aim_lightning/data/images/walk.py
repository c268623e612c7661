"""Find image files below a directory, and the splits of a data set."""

import os
from collections.abc import Container, Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

from PIL import Image

from aim_lightning.data.images.base import LeftOut
from aim_lightning.utils.errors import UserError

# Pillow registers these formats but needs other programs to decode them.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_OF_THE_SYSTEM = {"Thumbs.db", "desktop.ini"}
_TRAIN, _VAL = ("train", "training"), ("val", "valid", "validation", "dev", "test", "testing")


@cache
def image_suffixes() -> set[str]:
    """Return the lower-case suffixes of the formats that Pillow decodes, with their dot."""
    formats = Image.registered_extensions()
    return {suffix for suffix, name in formats.items() if name in Image.OPEN and name not in _NOT_DECODED}


def image_files(
    directory: Path, visited: set[tuple[int, int]], left_out: LeftOut, suffixes: Container[str] | None = None
) -> Iterator[str]:
    """Yield POSIX paths of the image files below a directory; directory links are followed.

    Args:
        directory: directory to walk. Names that start with a dot are ignored.
        visited: `identity` of directories to leave out: a link to a parent would repeat images under a wrong label.
        left_out: counts all other files.
        suffixes: of image files, lower-case with their dot; None = those of `image_suffixes`.

    Raises:
        UserError: a directory cannot be read.
    """
    suffixes = image_suffixes() if suffixes is None else suffixes
    visited = visited | {identity(directory)}
    for parent, directories, files in os.walk(directory, followlinks=True, onerror=_refuse):
        directories[:] = [name for name in directories if name[0] != "." and _add(visited, Path(parent, name))]
        for name in files:
            if name[0] == "." or name in _OF_THE_SYSTEM:
                continue
            path = Path(parent, name).relative_to(directory).as_posix()
            if os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122 (a million names)
                yield path
            else:
                left_out.add(path)


def identity(directory: Path) -> tuple[int, int]:
    """Return device and inode of a directory.

    Args:
        directory: an existing directory.
    """
    status = directory.stat()
    return status.st_dev, status.st_ino


def split_directories(root: Path) -> dict[str, Path]:
    """Return the directories of the splits ``train`` and ``val`` of a root that contains splits instead of classes.

    Args:
        root: directory with `train/`, and perhaps `val/` (validation, dev) or `test/`. A root with other directories
            but no validation split contains classes.
    """
    names = {entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."}
    train = next((name for name in _TRAIN if name in names), None)
    val = next((name for name in _VAL if name in names), None)
    if train is None or (val is None and len(names) > 1):
        return {}
    return {"train": root / train} | ({"val": root / val} if val else {})


def _refuse(error: OSError) -> NoReturn:
    reason = error.strerror or error
    raise UserError(f"{error.filename} cannot be read ({reason}); fix its permissions or the disk") from error


def _add(visited: set[tuple[int, int]], directory: Path) -> bool:
    """Return True for a directory that was not visited before, and add it."""
    new = identity(directory) not in visited
    visited.add(identity(directory))
    return new
