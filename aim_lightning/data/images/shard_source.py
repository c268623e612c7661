"""Read image shards: WebDataset tar files of KEY.png, jpg, jpeg or webp, and KEY.cls."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aim_lightning.data.images.base import sha256_json, warn_left_out
from aim_lightning.data.images.shard_writer import EXTENSIONS, FORMAT, MANIFEST
from aim_lightning.data.images.tar import TAR_ERRORS, TarSource, tar_members
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, require_regular

log = logging.getLogger(__name__)
MAX_CLASSES = 100_000  # a wrong label in a shard without manifest must not create millions of class names
LABEL_BYTES = 64  # of a .cls; a longer member is no class index


@dataclass
class ShardRow:
    """An image in a shard: its key, label, offset and size in the tar file (bytes)."""

    key: str
    label: int
    offset: int
    size: int


def shard_paths(directory: Path) -> list[Path]:
    """Return the directory's tar files by name, without hidden ones.

    Args:
        directory: directory of shards.
    """
    return sorted(path for path in directory.iterdir() if path.suffix.lower() == ".tar" and path.name[0] != ".")


def index_shard(path: Path, left_out: list[str]) -> list[ShardRow]:
    """Return the images of a shard in the order of the file, without decoding them.

    Args:
        path: the tar file.
        left_out: receives the names of the members that are neither an image nor a label.

    Raises:
        UserError: a damaged tar, or a key without exactly one image and one .cls.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    repeated: dict[str, None] = {}  # a dict keeps the order of the file
    for key, extension, member, content in _image_members(path, left_out):
        if key in (labels if extension == "cls" else images):
            repeated[key] = None
        elif extension != "cls":
            images[key] = (member.offset_data, member.size)
        elif (text := content.decode("ascii", "replace").strip()).removeprefix("-").isdecimal():
            labels[key] = int(text)
        else:
            fact = f".cls holds {content[:20]!r}, expected a class index such as 7"
            raise UserError(f"shard {path}, key {key}: {fact}")
    for keys, fact, fix in (
        ([*repeated], "more than one image or .cls", "a key ends at the first dot, so rename the members"),
        (sorted(images.keys() - labels.keys()), "there is no .cls with its class index", "write the shard again"),
        (sorted(labels.keys() - images.keys()), f"there is no image ({', '.join(EXTENSIONS)})", "add or convert it"),
    ):
        if keys:
            raise UserError(f"shard {path}, key {keys[0]}: {fact} ({len(keys)} such keys of {len(images)}); {fix}")
    return [ShardRow(key, labels[key], *span) for key, span in images.items()]


def _image_members(path: Path, left_out: list[str]) -> Iterator[tuple]:
    """Yield (key, lower-case extension, member, content of a .cls) of images and labels.

    As in WebDataset, a key ends at the first dot of the base name. The last part of the name is its extension:
    `IMG_1.edited.jpg` is the image of the key IMG_1. Names that start with a dot are ignored.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            for tar, member in tar_members(file):
                directory, _, name = member.name.rpartition("/")
                key, extension = f"{directory}/{name.partition('.')[0]}".lstrip("/"), Path(name).suffix[1:].lower()
                if member.isdir() or name.startswith("."):
                    continue
                if not member.isreg() or extension not in (*EXTENSIONS, "cls"):
                    left_out.append(f"{path.name}: {member.name}")
                else:
                    content = tar.extractfile(member).read(LABEL_BYTES) if extension == "cls" else b""
                    yield key, extension, member, content
    except TAR_ERRORS as error:
        raise UserError(f"shard {path} is truncated or damaged ({error}); restore or write it again") from error


def load_manifest(directory: Path) -> dict[str, Any] | None:
    """Read manifest.json and check it against the tar files; return None if it does not exist.

    The entry "shards" of the result maps names to their entries, in order.

    Args:
        directory: directory of shards.

    Raises:
        UserError: another format, a damaged file, or other shards than those in the directory.
    """
    path = directory / MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path, "image manifest")
    actual = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if actual != FORMAT:
        raise UserError(f"{path} has format {actual!r}, expected {FORMAT!r}; remove it or write the shards again")
    try:
        shards = {shard["name"]: shard for shard in manifest["shards"] if shard["sha256"] and shard["rows"] >= 0}
        manifest |= {"shards": shards, "class_names": [str(name) for name in manifest["class_names"]]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove it or write the shards again") from None
    present = {shard.name for shard in shard_paths(directory)}
    if absent := sorted(shards.keys() - present):
        raise UserError(f"{path} lists shard {absent[0]}, which is absent; restore it or write the shards again")
    if unlisted := sorted(present - shards.keys()):
        raise UserError(f"shard {directory / unlisted[0]} is not listed in {path}; remove one of the two")
    return manifest


class ShardSource(TarSource):
    """Image shards in the order of the manifest, or without one in the order of their names.

    Without a manifest the class names are "0" to "n-1", where n is the largest label plus 1. If two shards share a
    key, all keys get the prefix of their shard: `images-000000/KEY`.

    Args:
        path: directory of the shards.
        names: read only these shards; None = all.

    Raises:
        UserError: a damaged shard, a label out of range, or shards that differ from the manifest.
    """

    def __init__(self, path: str | Path, names: set[str] | None = None) -> None:
        directory = Path(path)
        self._manifest = manifest = load_manifest(directory)
        shards = [directory / name for name in manifest["shards"]] if manifest else shard_paths(directory)
        shards = [shard for shard in shards if names is None or shard.name in names]
        if not shards:
            raise UserError(f"{directory} holds no .tar shards; see data/README.md for the layout")
        left_out: list[str] = []
        rows = [(number, row) for number, shard in enumerate(shards) for row in self._index(shard, left_out)]
        warn_left_out(path, left_out, "neither image nor .cls")
        if not rows:
            raise UserError(f"the shards in {directory} hold no images; write them again")
        labels, keys = [row.label for _, row in rows], [row.key for _, row in rows]
        if not manifest:
            warn_gaps(path, set(labels))
        if len(set(keys)) < len(keys):  # WebDataset keys are unique within a shard only
            keys = [f"{shards[number].stem}/{row.key}" for number, row in rows]
        class_names = manifest["class_names"] if manifest else [str(label) for label in range(max(labels) + 1)]
        spans = np.array([(number, row.offset, row.size) for number, row in rows], dtype=np.int64)
        super().__init__(class_names, shards, spans, labels, map(os.fsencode, keys))

    def _index(self, shard: Path, left_out: list[str]) -> list[ShardRow]:
        rows = index_shard(shard, left_out)
        classes, limit = MAX_CLASSES, f"labels without {MANIFEST} lie between 0 and {MAX_CLASSES - 1}"
        if self._manifest:
            expected, classes = self._manifest["shards"][shard.name]["rows"], len(self._manifest["class_names"])
            limit = f"{MANIFEST} names {classes} classes"
            if len(rows) != expected:
                raise UserError(f"shard {shard} has {len(rows)} rows, {MANIFEST} says {expected}; restore the shard")
        if wrong := next((row for row in rows if not 0 <= row.label < classes), None):
            raise UserError(f"shard {shard}, key {wrong.key}: label {wrong.label} is out of range, {limit}")
        return rows

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 over class names and shard hashes; without a manifest over names and sizes."""
        if self._manifest:
            hashes = (self._manifest["shards"][shard.name]["sha256"] for shard in self.tars)
            return sha256_json([self.class_names, *hashes])
        return sha256_json([shard.name, shard.stat().st_size] for shard in self.tars)


def warn_gaps(where: object, labels: set[int]) -> None:
    """Log the number of labels below the largest one that have no image.

    Args:
        where: the source.
        labels: labels that have an image.
    """
    if gaps := sorted(set(range(max(labels) + 1)) - labels):
        log.warning("%s: %d of %d labels have no image (first: %d)", where, len(gaps), max(labels) + 1, gaps[0])
