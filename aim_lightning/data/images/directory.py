"""Open images of any layout: a class-per-directory tree, tar shards, or ImageNet's archives."""

import os
import re
from pathlib import Path

from webdataset.shardlists import expand_urls

from aim_lightning.data.images.base import (
    FileSource,
    ImageSource,
    identity,
    image_files,
    image_suffixes,
    split_directories,
    warn_left_out,
)
from aim_lightning.data.images.imagenet import ImageNetArchive, is_archive
from aim_lightning.data.images.metadata import MetadataSource, has_labels, metadata_file
from aim_lightning.data.images.shard_source import ShardSource, shard_paths
from aim_lightning.data.images.shard_writer import MANIFEST
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable, require_regular

_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_HUGE_RANGE = re.compile(r"[1-9]\d{7,}\.\.|\.\.\d*[1-9]\d{7}")
_TABLES = (".parquet", ".arrow", ".tfrecord", ".zip")
SUPPORTED = (
    "a directory of class directories, of .tar shards or with metadata.jsonl, a .tar, a pattern like "
    "shard-{000..009}.tar, or an archive of ImageNet (data/README.md)"
)


class DirectorySource(FileSource):
    """A tree `root/CLASS/**/image`: class directories in sorted order have the labels 0, 1, and so on.

    Rows are ordered by class, then by path. Names that start with a dot are left out.

    Args:
        root: directory of the class directories.

    Raises:
        UserError: the directory has no class directories, or one of them has no images.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        entries = sorted(entry for entry in self.root.iterdir() if entry.name[0] != ".")
        classes = [entry.name for entry in entries if entry.is_dir()]
        if not classes:
            raise UserError(f"{self.root} has no class directories; put the images into {self.root}/CLASS_NAME/")
        if splits := split_directories(self.root):
            paths = " and ".join(f"images.{split} {path}" for split, path in splits.items())
            raise UserError(f"{self.root} contains splits, not classes; set {paths}, or run `make dataset` on it")
        # Images next to the class directories belong to no class.
        left_out = [path.name for path in entries if path.suffix.lower() in image_suffixes() and path.is_file()]
        visited = {identity(directory) for directory in (self.root, *(self.root / name for name in classes))}
        paths, labels = [], []
        for label, name in enumerate(classes):
            others: list[str] = []
            files = sorted(image_files(self.root / name, visited, others))
            left_out += [f"{name}/{path}" for path in others]
            if not files:
                raise UserError(f"class directory {self.root / name} holds no images; fill or remove it")
            paths += [os.fsencode(f"{name}/{path}") for path in files]
            labels += [label] * len(files)
        warn_left_out(self.root, left_out, "not an image format that Pillow decodes, or not in a class directory")
        super().__init__([printable(name) for name in classes], labels, paths)


def open_source(path: str | Path) -> ImageSource:
    """Open the images at a path.

    Args:
        path: a class-per-directory tree; a Hugging Face imagefolder; a directory of shards; a .tar shard, or several
            with braces such as ``shard-{000..009}.tar``; an ImageNet archive.

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
        if _HUGE_RANGE.search(pattern):  # would fill the memory
            raise ValueError("a range goes beyond 9,999,999")
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
        raise UserError(f"{path} holds {len(compressed)} compressed shards (first: {compressed[0]}); unpack them")
    if shard_paths(path) or (path / MANIFEST).exists():
        return ShardSource(path)
    if tables := [name for name in names if name.lower().endswith(_TABLES)]:
        raise UserError(f"{path} holds {len(tables)} files like {tables[0]}, which cannot be read; set {SUPPORTED}")
    metadata = metadata_file(path)
    # Metadata without labels, such as captions, may lie next to class directories.
    if metadata and (has_labels(metadata) or not any(entry.is_dir() for entry in path.iterdir())):
        return MetadataSource(metadata)
    return DirectorySource(path)
