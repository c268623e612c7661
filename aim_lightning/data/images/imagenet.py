"""ImageNet-1k's archives as they are distributed, read without unpacking.

ILSVRC2012_img_train.tar contains one tar per class, named by its WordNet id. ILSVRC2012_img_val.tar contains images,
whose classes ILSVRC2012_devkit_t12.tar.gz lists. Labels follow torchvision: WordNet ids in sorted order.
"""

import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torchvision.datasets import imagenet
from tqdm import tqdm

from aim_lightning.data.images.base import sha256_json
from aim_lightning.data.images.tar import TAR_ERRORS, TarSource, tar_members
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import is_rank_zero

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_CLASS_TAR, _VAL_IMAGE = re.compile(r"(n\d{8})\.tar"), re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_IMAGENET_MEMBER = re.compile(f"{_CLASS_TAR.pattern}|{_VAL_IMAGE.pattern}")

Member = tuple[str, str, int, int]  # WordNet id, name of the image, offset in the archive, size in bytes


class ImageNetArchive(TarSource):
    """The training or validation archive; the devkit must be in the same directory.

    Rows and keys (`n01440764/n01440764_18.JPEG`) equal those of a class-per-directory tree of the same images. Class
    names are the synonyms of WordNet, "tench, Tinca tinca" (two classes are called "crane").

    Args:
        path: the archive.

    Raises:
        UserError: no ImageNet archive, a missing or changed devkit, or missing classes or images.
    """

    def __init__(self, path: Path) -> None:
        names, val_wnids = read_devkit(path.with_name(DEVKIT))
        if not _IMAGENET_MEMBER.fullmatch(first := _first_member(path)):
            raise UserError(f"{path} starts with {first!r}: it is neither ImageNet's training nor validation archive")
        members = _val_members(path, val_wnids) if _VAL_IMAGE.fullmatch(first) else _train_members(path, names)
        members.sort()  # the order of a class-per-directory tree: archives list their members in another one
        wnids = sorted(names)
        label = {wnid: number for number, wnid in enumerate(wnids)}
        super().__init__(
            [", ".join(names[wnid]) for wnid in wnids],
            [path],
            np.array([(0, offset, size) for _, _, offset, size in members], dtype=np.int64),
            (label[wnid] for wnid, *_ in members),
            (os.fsencode(f"{wnid}/{name}") for wnid, name, *_ in members),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 over class names and every image's key and size in bytes."""
        rows = ([self.key(row), int(self._spans[row][2])] for row in range(len(self)))
        return sha256_json([self.class_names, *rows])


def read_devkit(path: Path) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Read the synonyms by WordNet id and the id of each validation image; check the file's MD5.

    Args:
        path: the development kit.

    Raises:
        UserError: the file is missing or changed.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; put ImageNet's development kit next to the archives")
    with tempfile.TemporaryDirectory() as directory:
        # torchvision writes its result next to the file, whose directory may be read-only.
        (Path(directory) / path.name).symlink_to(path.resolve())
        try:
            imagenet.parse_devkit_archive(directory, path.name)
            return imagenet.load_meta_file(directory)
        except RuntimeError:
            raise UserError(f"{path} is not ImageNet's development kit (its MD5 differs); download it again") from None


def is_archive(path: Path) -> bool:
    """Return True for a tar file with ImageNet's name, or whose first member is one of ImageNet's.

    Args:
        path: a tar file.
    """
    try:
        return path.name.startswith("ILSVRC2012_img_") or _IMAGENET_MEMBER.fullmatch(_first_member(path)) is not None
    except UserError:  # damaged: the reader of shards reports it
        return False


def _first_member(path: Path) -> str:
    with path.open("rb") as file:
        return next((member.name for _, member in _checked_members(file, str(path))), "")


def _train_members(path: Path, names: dict[str, tuple[str, ...]]) -> list[Member]:
    members, wnids = [], set()
    for tar, outer in _read(path):
        if not outer.isreg():
            raise UserError(f"{path} holds {outer.name}, which is not the archive of a class; download it again")
        wnid = outer.name.removesuffix(".tar")
        wnids.add(wnid)
        with tar.extractfile(outer) as file:
            for _, inner in _checked_members(file, f"{path}, class {wnid}"):
                if not inner.name.startswith(f"{wnid}_"):
                    raise UserError(f"{path}: {outer.name} holds {inner.name}, which is no image of that class")
                # offset_data of a nested tar starts at the outer member.
                members.append((wnid, inner.name, outer.offset_data + inner.offset_data, inner.size))
    if wnids != names.keys():
        first = min(wnids ^ names.keys())
        fact = "lacks" if first in names else "has a class unknown to the devkit,"
        raise UserError(f"{path} {fact} {first} ({len(wnids)} classes of {len(names)}); download it again")
    return members


def _val_members(path: Path, val_wnids: list[str]) -> list[Member]:
    members = []
    for _, member in _read(path):
        match = _VAL_IMAGE.fullmatch(member.name)
        if not match or not 1 <= int(match[1]) <= len(val_wnids):
            raise UserError(f"{path} holds {member.name}, which is not one of its {len(val_wnids)} images")
        members.append((val_wnids[int(match[1]) - 1], member.name, member.offset_data, member.size))
    if len({name for _, name, *_ in members}) != len(val_wnids):
        raise UserError(f"{path} holds {len(members)} images, the devkit lists {len(val_wnids)}; download it again")
    return members


def _read(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield all members and show progress: the headers are spread over 138 GB."""
    options = {"unit": "B", "unit_scale": True, "leave": False, "disable": None if is_rank_zero() else True}
    with path.open("rb") as file, tqdm(total=path.stat().st_size, desc=f"opening {path.name}", **options) as bar:
        for tar, member in _checked_members(file, str(path)):
            yield tar, member
            bar.update(member.offset_data + member.size - bar.n)


def _checked_members(file: BinaryIO, where: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    try:
        yield from tar_members(file)
    except TAR_ERRORS as error:
        raise UserError(f"{where} is truncated or damaged ({error}); download it again") from error
