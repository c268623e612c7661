"""Sets of images that are decoded one by one: directories, and images of an experiment."""

import hashlib
import io
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aim_lightning.data.images.dataset import ImageDataset
from aim_lightning.data.images.decode import to_rgb
from aim_lightning.evaluation.image_sets import Batch, ImageList, NpzImages, joined
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
WORKERS = 16
FEW = 256  # images: fewer are decoded without loader processes
PIECE = 50  # images that a loader process hands over at once: small, so that the first batch is soon there
AHEAD = 4000  # images that are decoded before they are asked for: 0.8 GB at 256 pixels


class LoadedImages(ImageList):
    """Images that are decoded one by one, by loader processes where there are many."""

    digests: np.ndarray  # (images, 32) uint8: of those that were read; zeros of others

    @abstractmethod
    def image(self, number: int) -> tuple[Tensor, int, bytes]:
        """uint8 (3, H, W), its label, and a sha256 that identifies it."""

    def gather(self, ranks: ProcessGroup) -> None:
        self.digests = np.bitwise_or.reduce(ranks.gather(self.digests))

    def batches(self, parts: Sequence[range]) -> Iterator[Batch]:
        """As in `ImageList`. Loader processes begin to decode at the call."""
        pieces = [rows[start : start + PIECE] for rows in parts for start in range(0, len(rows), PIECE)]
        options: dict[str, Any] = {}
        if sum(map(len, parts)) > FEW:
            workers = min(WORKERS, os.cpu_count() or 1)
            options = {"num_workers": workers, "prefetch_factor": max(2, AHEAD // (workers * PIECE))}
        own = torch.Generator()  # the loader draws a seed for its workers, which training's own must not notice
        loader = DataLoader(_Rows(self), batch_sampler=pieces, collate_fn=_stack, generator=own, **options)
        return self._joined(parts, iter(loader))

    def _joined(self, parts: Sequence[range], pieces: Iterator[tuple]) -> Iterator[Batch]:
        """Batches of the parts from their pieces."""
        for rows in parts:
            images, labels, digests = zip(*(next(pieces) for _ in range(0, len(rows), PIECE)), strict=True)
            self.digests[rows.start : rows.stop] = np.concatenate(digests)
            known = None if self.labels is None else torch.cat(labels)
            yield joined(images), known, torch.arange(rows.start, rows.stop)


class DirectoryImages(LoadedImages):
    """All images below a directory, in the order of their paths; all of one size.

    Raises:
        UserError: no directory, or no images in it.
    """

    known_by_reading = True

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        found = (path for path in self.directory.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        self.paths = sorted(found)
        if not self.paths:
            raise UserError(f"{directory} holds no images ({', '.join(SUFFIXES)})")
        self.digests = no_digests(len(self.paths))
        self.size = self.image(0, check=False)[0].shape

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, number: int, check: bool = True) -> tuple[Tensor, int, bytes]:
        """As in `LoadedImages`; the hash is the file's."""
        path = self.paths[number]
        try:
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                array = np.asarray(to_rgb(image))
        except (OSError, ValueError, SyntaxError) as error:
            # Pillow names the stream, whose address says nothing.
            why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(f"{path} cannot be read as an image ({why}); restore or remove it") from None
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
        if check and tensor.shape != self.size:
            sizes = [f"{shape[2]}x{shape[1]}" for shape in (tensor.shape, self.size)]
            raise UserError(f"{path} is {sizes[0]} pixels, {self.paths[0].name} {sizes[1]}; all must be of one size")
        return tensor, 0, hashlib.sha256(content).digest()

    def gather(self, ranks: ProcessGroup) -> None:
        super().gather(ranks)
        self.__dict__.pop("_hash", None)  # files that have changed since they were hashed count as they were read

    def source(self) -> dict[str, Any]:
        """`sha256`: of all paths and files; those that no process has read before `gather` are read for it."""
        return {"kind": "folder", "name": self.directory.name, "sha256": self._hash, "pictures": len(self)}

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256()
        for path, content in zip(self.paths, self._all_digests(), strict=True):
            digest.update(f"{path.relative_to(self.directory).as_posix()} {content.tobytes().hex()}\n".encode())
        return digest.hexdigest()

    def _all_digests(self) -> np.ndarray:
        """Those of images that were not read are made for it alone: another process may yet read another file."""
        digests = self.digests.copy()
        others = np.flatnonzero(~digests.any(1))
        with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
            for number, content in zip(others, pool.map(sha256_file, [self.paths[i] for i in others]), strict=True):
                digests[number] = np.frombuffer(bytes.fromhex(content), np.uint8)
        return digests


class GeometryImages(LoadedImages):
    """An image set of an experiment: class directories or shards, with its resizing and cropping."""

    def __init__(self, dataset: ImageDataset, name: str) -> None:
        self.dataset, self.name = dataset, name
        self.labels = torch.from_numpy(dataset.source.labels)
        self.num_classes = len(dataset.class_names)
        self.digests = no_digests(len(dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, number: int) -> tuple[Tensor, int, bytes]:
        """As in `LoadedImages`; the hash is that of the pixels, after resizing and cropping."""
        images, labels = self.dataset.batch([number])
        return images[0], int(labels[0]), hashlib.sha256(images[0].numpy().tobytes()).digest()

    def source(self) -> dict[str, Any]:
        """`fingerprint`: of the shards' content where a manifest has it, else of the files' names and sizes."""
        return {
            "kind": "pictures",
            "name": self.name,
            "fingerprint": self.dataset.source.fingerprint,
            "pictures": len(self),
            "geometry": repr(self.dataset.transform),
        }

    def content(self) -> dict[str, str]:
        """Hash of all pixels: names and sizes stay when an image is edited."""
        return {"pixels_sha256": hashlib.sha256(self.digests.tobytes()).hexdigest()}

    def state(self) -> str:
        """Hash of the files' modification times: an image that was edited in place may have kept its size."""
        digest = hashlib.sha256()
        for path in self.dataset.source.files():
            digest.update(f"{path.stat().st_mtime_ns} ".encode())
        return digest.hexdigest()


class _Rows(Dataset):
    def __init__(self, images: LoadedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int, bytes]:
        return self.images.image(number)


def _stack(records: list[tuple[Tensor, int, bytes]]) -> tuple[Tensor, Tensor, np.ndarray]:
    images, labels, digests = zip(*records, strict=True)
    hashes = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
    return torch.stack(images), torch.tensor(labels), hashes


def no_digests(images: int) -> np.ndarray:
    """Zeros, (images, 32) uint8."""
    return np.zeros((images, hashlib.sha256().digest_size), np.uint8)


def open_images(path: str | Path) -> ImageList:
    """An .npz or a directory of images.

    Raises:
        UserError: neither.
    """
    path = Path(path)
    if path.is_dir():
        return DirectoryImages(path)
    return NpzImages(path)
