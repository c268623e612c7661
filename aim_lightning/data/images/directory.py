"""Open images of any layout: a class-per-directory tree, tar shards, or ImageNet's archives."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from webdataset.shardlists import expand_urls

from aim_lightning.data.images.base import FileSource, ImageSource
from aim_lightning.data.images.decode import require_regular
from aim_lightning.data.images.imagenet import ImageNetArchive, is_archive
from aim_lightning.data.images.shard_source import ShardSource, shard_paths
from aim_lightning.data.images.shard_writer import MANIFEST
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable

_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_TABLES = (".parquet", ".arrow", ".tfrecord", ".zip")
SUPPORTED = (
    "a directory of class directories or of .tar shards, a .tar, a pattern like shard-{000..009}.tar, or an archive of "
    "ImageNet (data/README.md)"
)
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
        path: a class-per-directory tree; a directory of shards; a .tar shard, or several with braces such as
            ``shard-{000..009}.tar``; an ImageNet archive.

    Raises:
        UserError: the path does not exist or has an unknown layout.
    """
    pattern, path = str(path), Path(path)
    if path.is_dir():
        return _open_directory(path)
    if not path.exists():
        if "{" in pattern:
            return _open_pattern(pattern)
        raise UserError(f"image set {path} does not exist; set {SUPPORTED}, or try data/fashion_mnist_mini/train")
    if path.suffix.lower() != ".tar":
        raise UserError(f"image set {path} has an unsupported format; set {SUPPORTED}")
    require_regular(path)
    return ImageNetArchive(path) if is_archive(path) else ShardSource(path.parent, {path.name})


def _open_pattern(pattern: str) -> ImageSource:
    try:
        files = [Path(name) for name in expand_urls(pattern)]
    except ValueError as error:
        raise UserError(f"image set {pattern} is no pattern of file names ({error}); set {SUPPORTED}") from None
    if absent := [file for file in files if not file.is_file() or file.suffix.lower() != ".tar"]:
        raise UserError(f"{len(absent)} of the {len(files)} files of {pattern} are no .tar files (first: {absent[0]})")
    if len({file.parent for file in files}) > 1:
        raise UserError(f"image set {pattern} names several directories; put the shards into one")
    return ShardSource(files[0].parent, {file.name for file in files})


def _open_directory(path: Path) -> ImageSource:
    if archives := sorted(path.glob("ILSVRC2012_img_*.tar")):
        raise UserError(f"{path} holds archives of ImageNet; name one of them itself: {archives[0]}")
    names = sorted(entry.name for entry in path.iterdir() if entry.name[0] != ".")
    if compressed := [name for name in names if _COMPRESSED.search(name)]:
        raise UserError(
            f"{path} holds {len(compressed)} compressed shards (first: {compressed[0]}); unpack them to .tar"
        )
    if shard_paths(path) or (path / MANIFEST).exists():
        return ShardSource(path)
    if tables := [name for name in names if name.lower().endswith(_TABLES)]:
        raise UserError(f"{path} holds {len(tables)} files like {tables[0]}, which cannot be read; set {SUPPORTED}")
    return DirectorySource(path)
