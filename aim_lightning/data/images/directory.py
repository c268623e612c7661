"""Image sources: a class-per-directory tree, a directory of tar shards, or ImageNet's archives."""

import logging
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from aim_lightning.data.images.base import ImageSource, sha256_json
from aim_lightning.data.images.decode import opening, read_image
from aim_lightning.data.images.imagenet import ImageNetArchive
from aim_lightning.data.images.shard_writer import MANIFEST, ShardRow, index_shard, load_manifest, shard_paths
from aim_lightning.data.images.tar import TarSource
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable

log = logging.getLogger(__name__)
MAX_CLASSES = 100_000  # a wrong label in a shard without manifest must not create millions of class names
# Pillow registers these formats but needs other programs to decode them.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class DirectorySource(ImageSource):
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

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 over path below the root and size in bytes of every image."""
        return sha256_json([self.key(row), self._size(row)] for row in range(len(self)))

    def files(self) -> Iterator[Path]:
        """Return the image files."""
        return (self.root / self.key(row) for row in range(len(self)))

    def _size(self, row: int) -> int:
        path = self.root / self.key(row)
        with opening(path):
            return path.stat().st_size

    def _content(self, row: int) -> bytes:
        return read_image(self.root / self.key(row))

    def location(self, row: int) -> str:
        """Return the path of an image."""
        return str(self.root / self.key(row))


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


class ShardSource(TarSource):
    """A directory of image shards in the order of the manifest, or without one in the order of their names.

    Without a manifest the class names are "0" to "n-1", where n is the largest label plus 1. If two shards share a
    key, all keys get the prefix of their shard: `images-000000/KEY`.

    Args:
        path: directory of the shards.

    Raises:
        UserError: a damaged shard, a label out of range, or shards that differ from the manifest.
    """

    def __init__(self, path: str | Path) -> None:
        self.directory = Path(path)
        self._manifest = load_manifest(self.directory)
        shards = self._listed() if self._manifest else shard_paths(self.directory)
        if not shards:
            raise UserError(f"{self.directory} holds no .tar shards; see data/README.md for the layout")
        rows = [(number, row) for number, shard in enumerate(shards) for row in self._index(number, shard)]
        if not rows:
            raise UserError(f"the shards in {self.directory} hold no images; write them again")
        spans = np.array([(number, row.offset, row.size) for number, row in rows], dtype=np.int64)
        classes = max(row.label for _, row in rows) + 1
        names = self._manifest["class_names"] if self._manifest else [str(label) for label in range(classes)]
        if not self._manifest and (gaps := sorted(set(range(classes)) - {row.label for _, row in rows})):
            log.warning("%s: %d of %d labels have no image (first: %d)", path, len(gaps), classes, gaps[0])
        keys = _unique_keys([row.key for _, row in rows], [shards[number].stem for number, _ in rows])
        super().__init__(names, shards, spans, (row.label for _, row in rows), map(os.fsencode, keys))

    def _listed(self) -> list[Path]:
        return [self.directory / shard["name"] for shard in self._manifest["shards"]]

    def _index(self, number: int, shard: Path) -> list[ShardRow]:
        rows = index_shard(shard)
        classes = None
        if self._manifest:
            expected, classes = self._manifest["shards"][number]["rows"], len(self._manifest["class_names"])
            if len(rows) != expected:
                raise UserError(
                    f"shard {shard} has {len(rows)} rows, {self.directory / MANIFEST} says {expected}; "
                    "restore the shard or write the set again"
                )
        for row in rows:
            if not 0 <= row.label < (MAX_CLASSES if classes is None else classes):
                limit = f"labels without {MANIFEST} lie between 0 and {MAX_CLASSES - 1}"
                limit = limit if classes is None else f"{MANIFEST} names {classes} classes"
                raise UserError(f"shard {shard}, key {row.key}: label {row.label} is out of range, {limit}")
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 over class names and shard hashes, or without a manifest over shard names and sizes."""
        if self._manifest:
            return sha256_json([self.class_names, *(shard["sha256"] for shard in self._manifest["shards"])])
        return sha256_json([shard.name, shard.stat().st_size] for shard in self.tars)


def _unique_keys(keys: list[str], shards: list[str]) -> list[str]:
    # WebDataset keys are unique within a shard only.
    if len(set(keys)) == len(keys):
        return keys
    return [f"{shard}/{key}" for shard, key in zip(shards, keys, strict=True)]


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
