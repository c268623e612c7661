"""ImageNet-1k's archives as they are distributed, read without unpacking.

ILSVRC2012_img_train.tar holds a tar a class, named by its WordNet id; ILSVRC2012_img_val.tar holds images, whose
classes ILSVRC2012_devkit_t12.tar.gz beside it lists. Labels follow torchvision: WordNet ids in sorted order.
"""

import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from torchvision.datasets import imagenet
from tqdm import tqdm

from aim_lightning.data.images.base import sha256_json
from aim_lightning.data.images.tar import TarSource
from aim_lightning.data.tar import members
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import is_rank_zero

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_CLASS_TAR, _VAL_IMAGE = re.compile(r"(n\d{8})\.tar"), re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")

Place = tuple[str, str, int, int]  # WordNet id, name of the image, offset in the archive, bytes


class ImageNetArchive(TarSource):
    """The training or the validation archive; the devkit must lie beside it.

    Rows and keys (`n01440764/n01440764_18.JPEG`) are those of a class-per-directory tree of the same images; class
    names are the synonyms of WordNet, "tench, Tinca tinca" (two classes are called "crane").

    Raises:
        UserError: another archive, a missing or changed devkit, missing classes or images.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        names, val_wnids = read_devkit(self.path.with_name(DEVKIT))
        places = sorted(_val_places(self.path, val_wnids) if _is_val(self.path) else _train_places(self.path, names))
        wnids = sorted(names)
        label = {wnid: number for number, wnid in enumerate(wnids)}
        super().__init__(
            [", ".join(names[wnid]) for wnid in wnids],
            [self.path],
            np.array([(0, offset, size) for _, _, offset, size in places], dtype=np.int64),
            (label[wnid] for wnid, *_ in places),
            (os.fsencode(f"{wnid}/{name}") for wnid, name, *_ in places),
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over class names and every image's key and size in bytes."""
        rows = ([self.key(row), int(self._places[row][2])] for row in range(len(self)))
        return sha256_json([self.class_names, *rows])


def read_devkit(path: Path) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Synonyms by WordNet id, and the id of each validation image in order; the file's MD5 is checked.

    Raises:
        UserError: missing or changed.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; the archives need ImageNet's development kit beside them")
    with tempfile.TemporaryDirectory() as place:
        # torchvision writes what it finds beside the file.
        (Path(place) / path.name).symlink_to(path.resolve())
        try:
            imagenet.parse_devkit_archive(place, path.name)
            return imagenet.load_meta_file(place)
        except RuntimeError:
            raise UserError(f"{path} is not ImageNet's development kit (its MD5 differs); get it anew") from None


def _is_val(path: Path) -> bool:
    with path.open("rb") as file:
        first = next((member.name for _, member in _members(file, str(path))), "")
    if not (_CLASS_TAR.fullmatch(first) or _VAL_IMAGE.fullmatch(first)):
        raise UserError(f"{path} begins with {first!r}: it is neither ImageNet's training nor validation archive")
    return _VAL_IMAGE.fullmatch(first) is not None


def _train_places(path: Path, names: dict[str, tuple[str, ...]]) -> list[Place]:
    places, found = [], set()
    for tar, outer in _read(path):
        wnid = outer.name.removesuffix(".tar")
        found.add(wnid)
        with tar.extractfile(outer) as file:
            for _, inner in _members(file, f"{path}, class {wnid}"):
                if not inner.name.startswith(f"{wnid}_"):
                    raise UserError(f"{path}: {outer.name} holds {inner.name}, which is no image of that class")
                places.append((wnid, inner.name, outer.offset_data + inner.offset_data, inner.size))
    if found != names.keys():
        odd = sorted(found ^ names.keys())
        what = "lacks" if odd[0] in names else "has a class unknown to the devkit,"
        raise UserError(f"{path} {what} {odd[0]} ({len(found)} classes of {len(names)}); get it anew")
    return places


def _val_places(path: Path, val_wnids: list[str]) -> list[Place]:
    places = []
    for _, member in _read(path):
        match = _VAL_IMAGE.fullmatch(member.name)
        if not match or not 1 <= int(match[1]) <= len(val_wnids):
            raise UserError(f"{path} holds {member.name}, which is none of its {len(val_wnids)} images")
        places.append((val_wnids[int(match[1]) - 1], member.name, member.offset_data, member.size))
    if len({name for _, name, *_ in places}) != len(val_wnids):
        raise UserError(f"{path} holds {len(places)} images, the devkit lists {len(val_wnids)}; get it anew")
    return places


def _read(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """All members; a bar shows how far it is, since the headers lie all over 138 GB."""
    options = {"unit": "B", "unit_scale": True, "leave": False, "disable": None if is_rank_zero() else True}
    with path.open("rb") as file, tqdm(total=path.stat().st_size, desc=f"opening {path.name}", **options) as bar:
        for tar, member in _members(file, str(path)):
            yield tar, member
            bar.update(member.offset_data + member.size - bar.n)


def _members(file, where: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    try:
        yield from members(file)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{where} is truncated or damaged ({error}); get it anew") from error
