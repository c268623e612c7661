"""Sets of images to score, uint8 and by number: an .npz, a directory, images of an experiment."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from aim_lightning.data.images.base import FileSource, ImageSource, image_files, warn_left_out
from aim_lightning.data.images.dataset import ImageDataset
from aim_lightning.data.images.decode import opening
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.utils.grid import labelled_grid, png_bytes
from aim_lightning.utils.npz import NpzFile
from aim_lightning.utils.process import outlive_signals, prefetch

Batch = tuple[Tensor, Tensor | None, Tensor]  # uint8 (B, 3, H, W), labels (B,) or None, image numbers (B,)
Between = Callable[[Iterable[Batch]], Iterable[Batch]]  # yields batches; can end the work between two of them
Size = tuple[int, int]  # height, width
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LOADER_WORKERS = 16
LOADER_THRESHOLD = 256  # images: fewer are decoded without loader processes
DECODED_AHEAD = 4000  # images: 0.8 GB at 256 pixels
PINNED_BATCHES = 2
PREVIEW_ROWS, PREVIEW_COLUMNS = 10, 8


class ImageSet(ABC):
    """A numbered set of images of one size."""

    labels: Tensor | None = None  # int64 (N,)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def images(self, parts: Sequence[range]) -> Iterator[Tensor]:
        """Yield uint8 (B, 3, H, W) for each range of image numbers; ranges ascend.

        Raises:
            UserError: an image cannot be read.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return plain values that identify the images, for the protocol; they contain no paths of this machine."""

    def files(self) -> Iterable[Path]:
        """Return the files that contain the images."""
        return []

    def state(self) -> str:
        """Return a hash of the modification times: an image that is edited in place may keep its name and size."""
        digest = hashlib.sha256()
        for path in self.files():
            with opening(path):
                digest.update(f"{path.stat().st_mtime_ns} ".encode())
        return digest.hexdigest()

    def batches(self, parts: Sequence[range]) -> Iterator[Batch]:
        """Yield images, labels and numbers of each range; errors as in `images`."""
        for rows, images in zip(parts, self.images(parts), strict=True):
            numbers = torch.arange(rows.start, rows.stop)
            yield images, None if self.labels is None else self.labels[numbers], numbers

    def shard(self, ranks: ProcessGroup, batch_size: int) -> Iterator[Batch]:
        """Return this rank's share of all images; the batches do not depend on the number of ranks."""
        return self.batches(ranks.shard(ranges(len(self), batch_size)))

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Return a few images, uint8 (n, 3, H, W), for a preview; numbers ascend."""
        return torch.cat(list(self.images([range(n, n + 1) for n in numbers])))

    def preview(self, class_names: list[str] | None) -> bytes:
        """Return a PNG with one row per class for the first classes; without labels the first images."""
        numbers, columns, names = list(range(len(self))[: PREVIEW_ROWS * PREVIEW_COLUMNS]), PREVIEW_COLUMNS, []
        if self.labels is not None:
            classes = self.labels.unique()[:PREVIEW_ROWS].tolist()
            by_class = [(self.labels == label).nonzero()[:PREVIEW_COLUMNS, 0].tolist() for label in classes]
            columns = min(map(len, by_class))
            numbers = [number for row in by_class for number in row[:columns]]
            names = [class_names[label] if class_names else str(label) for label in classes]
        # Image sets are read in ascending order; the inverse permutation puts the images into their rows.
        order = torch.tensor(numbers).argsort()
        return png_bytes(labelled_grid(self.read(sorted(numbers))[order.argsort()], columns, names))


class NpzImages(ImageSet):
    """Images in ADM's format: arr_0 is uint8 (N, H, W, 3), arr_1 or `labels` the optional class numbers.

    Raises:
        UserError: another dtype or shape, a damaged file, or pickled objects.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = NpzFile(path)
        self.rows = self.file.rows("arr_0")
        shape, where = self.rows.shape, f"{self.file.path}, array arr_0"
        if self.rows.dtype != np.uint8:
            raise UserError(f"{where}: dtype is {self.rows.dtype}; save uint8 images, 0 to 255, rounded")
        if len(shape) != 4 or shape[3] != 3:
            raise UserError(f"{where}: shape is {shape}; expected (images, height, width, 3)")
        for name in [name for name in ("arr_1", "labels") if name in self.file][:1]:
            labels = self.file.array(name)
            if labels.shape != (len(self),) or labels.dtype.kind not in "iu":
                fact = f"{labels.dtype} {labels.shape}; expected one class number per image"
                raise UserError(f"{self.file.path}, array {name}: {fact}")
            self.labels = torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return self.rows.shape[0]

    def images(self, parts: Sequence[range]) -> Iterator[Tensor]:
        """Yield the rows of each range."""
        return map(channels_first, self.rows.batches(parts))

    def identity(self) -> dict[str, Any]:
        """Return the file's name and hash; each call reads the file and compares its checksums."""
        return {"kind": "npz", "name": self.file.path.name, "sha256": self.file.sha256(), "pictures": len(self)}

    def files(self) -> Iterable[Path]:
        """Return the one file of the set."""
        return [self.file.path]


class DecodedImages(ImageSet):
    """Images that are decoded one by one, by loader processes if the set is large.

    Args:
        source: the encoded images.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    @abstractmethod
    def __getitem__(self, number: int) -> Tensor:
        """Decode one image, uint8 (3, H, W)."""

    def files(self) -> Iterable[Path]:
        """Return the image files or the archives that contain them."""
        return self.source.files()

    def images(self, parts: Sequence[range]) -> Iterator[Tensor]:
        """Yield the images of each range; each loader worker decodes one batch."""
        # The loader's seed comes from a separate generator, so that training's random state does not change.
        options: dict[str, Any] = {"generator": torch.Generator(), "worker_init_fn": outlive_signals}
        if sum(map(len, parts)) > LOADER_THRESHOLD:
            workers = min(LOADER_WORKERS, os.cpu_count() or 1, len(parts))
            ahead = max(1, DECODED_AHEAD // (workers * len(parts[0])))
            options |= {"num_workers": workers, "prefetch_factor": ahead}
        return iter(DataLoader(self, batch_sampler=parts, **options))


class FlatDirectory(FileSource):
    """All images below a directory in the order of their paths, without classes."""

    def __init__(self, root: str | Path) -> None:
        self.root, left_out = Path(root), []
        # By the parts of the path, as pathlib sorts: fingerprints of stored results depend on this order.
        keys = sorted(image_files(self.root, set(), left_out, SUFFIXES), key=lambda key: key.split("/"))
        if not keys:
            raise UserError(f"{root} contains no images ({', '.join(SUFFIXES)}); fill the directory")
        warn_left_out(root, left_out, f"not one of {', '.join(SUFFIXES)}")
        super().__init__([], np.zeros(len(keys)), map(os.fsencode, keys))

    @cached_property
    def fingerprint(self) -> str:
        """Return the hex sha256 over the paths below the root and the content of all files."""
        digest = hashlib.sha256()
        with ThreadPoolExecutor(LOADER_WORKERS) as pool:
            for row, content in enumerate(pool.map(sha256_file, self.files())):
                digest.update(os.fsencode(f"{self.key(row)} {content}\n"))
        return digest.hexdigest()


class DirectoryImages(DecodedImages):
    """All images below a directory; they must have one size.

    Raises:
        UserError: the directory contains no images, or the first one cannot be read.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__(FlatDirectory(directory))
        self.shape = _to_tensor(self.source[0]).shape

    def __getitem__(self, number: int) -> Tensor:
        """Decode one image and compare its size with the first one's."""
        image = _to_tensor(self.source[number])
        if image.shape != self.shape:
            fact = f"{pixels(image)} pixels, {self.source.key(0)} {pixels(self.shape)}"
            raise UserError(f"{self.source.location(number)} is {fact}; give all images one size")
        return image

    def identity(self) -> dict[str, Any]:
        """Return the directory's name and a hash of all paths and files."""
        name, fingerprint = self.source.root.name, self.source.fingerprint
        return {"kind": "folder", "name": name, "sha256": fingerprint, "pictures": len(self)}


class ExperimentImages(DecodedImages):
    """An image set of an experiment, class directories or shards, with its resizing and cropping."""

    def __init__(self, dataset: ImageDataset, name: str) -> None:
        super().__init__(dataset.source)
        self.dataset, self.name = dataset, name
        self.labels = torch.from_numpy(dataset.labels)
        self.num_classes = len(dataset.class_names)

    def __getitem__(self, number: int) -> Tensor:
        """Decode, resize and crop one image."""
        return self.dataset.batch([number])[0][0]

    def identity(self) -> dict[str, Any]:
        """Return the fingerprint: of the shards' content with a manifest, else of file names and sizes."""
        values = {"kind": "pictures", "name": self.name, "fingerprint": self.source.fingerprint}
        return values | {"pictures": len(self), "geometry": self.dataset.geometry}


def open_images(path: str | Path) -> ImageSet:
    """Open an .npz file or a directory of images.

    Raises:
        UserError: the path is neither.
    """
    return DirectoryImages(path) if Path(path).is_dir() else NpzImages(path)


def check_size(size: Size | None, reference: Size | None) -> None:
    """Compare the sizes of images and reference images.

    Args:
        size: height and width of the images; None where it is unknown.
        reference: height and width of the reference images; None where it is unknown.

    Raises:
        UserError: they differ.
    """
    if size is not None and reference is not None and tuple(size) != tuple(reference):
        sizes = f"the images are {pixels(size)} pixels, those of the reference {pixels(reference)}"
        raise UserError(f"{sizes}; give both one size")


def decoded_size(tokenizer: Any) -> Size | None:
    """Return the size of the images that a tokenizer decodes; None where its configuration has no image_size."""
    size = getattr(getattr(tokenizer, "config", None), "image_size", None)
    return None if size is None else (size, size)


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches with their images on the device; a GPU gets pinned batches that a thread reads ahead."""
    if device.type != "cuda":
        yield from batches
        return
    pinned = ((images.pin_memory(), *others) for images, *others in batches)
    for images, *others in prefetch(pinned, PINNED_BATCHES):
        # From pinned memory the copy is asynchronous: Python continues and the GPU is never idle.
        yield images.to(device, non_blocking=True), *others


def ranges(count: int, size: int) -> list[range]:
    """Split 0 to count - 1 into ranges of `size`; the last one may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def pixels(shape: Any) -> str:
    """Return ``width x height`` of an image or of a shape that ends with height and width."""
    height, width = getattr(shape, "shape", shape)[-2:]
    return f"{width}x{height}"


def channels_first(array: np.ndarray) -> Tensor:
    """Return images (B, H, W, 3) as a tensor (B, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)


def _to_tensor(image: Any) -> Tensor:
    return channels_first(np.array(image)[None])[0].contiguous()
