"""Image sources: a class-per-directory tree, a directory of tar shards, or ImageNet's archives."""

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from aim_lightning.data.images.base import FileSource, ImageSource
from aim_lightning.data.images.imagenet import ImageNetArchive
from aim_lightning.data.images.shard_source import ShardSource, shard_paths
from aim_lightning.data.images.shard_writer import MANIFEST
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable

# Pillow registers these formats but needs other programs to decode them.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class DirectorySource(FileSource):
    """A tree `root/CLASS/**/image`: class directories in sorted order have the labels 0, 1, and so on.

    Rows are ordered by class, then by path. Names that start with a dot are left out.

    Args:
        root: directory of the class directories.

    Raises:
        UserError: the directory is missing, has no class directories, or one of them has no images.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"image directory {self.root} does not exist or is no directory; see data/README.md")
        classes = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not classes:
            raise UserError(f"{self.root} has no class directories; put the images into {self.root}/CLASS_NAME/")
        visited = {_identity(directory) for directory in (self.root, *(self.root / name for name in classes))}
        paths, labels = [], []
        for label, name in enumerate(classes):
            files = sorted(_image_files(self.root / name, visited))
            if not files:
                raise UserError(f"class directory {self.root / name} holds no images; fill or remove it")
            paths += [os.fsencode(f"{name}/{path}") for path in files]
            labels += [label] * len(files)
        super().__init__([printable(name) for name in classes], labels, paths)


def _image_files(directory: Path, visited: set[tuple[int, int]]) -> Iterator[str]:
    """Yield POSIX paths below `directory` of files whose suffix Pillow can decode; directory links are followed.

    Directories in `visited`, (device, inode), are left out: a link to a parent would repeat images under a wrong label.
    """
    formats = Image.registered_extensions()
    suffixes = {s for s, name in formats.items() if name in Image.OPEN and name not in _NOT_DECODED}
    visited = visited | {_identity(directory)}
    for parent, directories, files in os.walk(directory, followlinks=True):
        directories[:] = [name for name in directories if name[0] != "." and _add(visited, Path(parent, name))]
        for name in files:
            if name[0] != "." and os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122 (a million names)
                yield Path(parent, name).relative_to(directory).as_posix()


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino


def _add(visited: set[tuple[int, int]], directory: Path) -> bool:
    """Return True for a directory that was not visited before, and add it."""
    identity = _identity(directory)
    new = identity not in visited
    visited.add(identity)
    return new


def open_source(path: str | Path) -> ImageSource:
    """Open the images at a path.

    Args:
        path: an ImageNet archive, a directory of shards (or of their manifest), or a class-per-directory tree.

    Raises:
        UserError: the path does not exist or has an unknown layout.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".tar":
        return ImageNetArchive(path)
    if not path.is_dir():
        fact = "is no directory" if path.exists() else "does not exist"
        raise UserError(
            f"image set {path} {fact}; set a directory of class directories or of tar shards, or an archive of "
            "ImageNet (data/README.md), or try data/fashion_mnist_mini/train"
        )
    if archives := sorted(path.glob("ILSVRC2012_img_*.tar")):
        raise UserError(f"{path} holds archives of ImageNet; name one of them itself: {archives[0]}")
    if compressed := sorted(file.name for file in path.iterdir() if file.name.endswith((".tar.gz", ".tgz"))):
        raise UserError(
            f"{path} holds {len(compressed)} compressed shards (first: {compressed[0]}); unpack them to .tar"
        )
    if shard_paths(path) or (path / MANIFEST).exists():
        return ShardSource(path)
    return DirectorySource(path)
