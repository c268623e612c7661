"""Sets of images to be scored: drawn blocks, an .npz (directories: `decoded`); all uint8, by number."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_lightning.evaluation.sample_blocks import BlockDirectory
from aim_lightning.evaluation.sample_plan import ranges
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.npz import NpzFile
from aim_lightning.utils.process import in_background, prefetch

Batch = tuple[Tensor, Tensor | None, Tensor]  # uint8 (B, 3, H, W), labels (B,), numbers (B,)
DEPTH = 2  # batches that lie ready in pinned memory


class ImageList(ABC):
    """Images by number."""

    labels: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, parts: Sequence[range]) -> Iterator[Batch]:
        """The images of each range, ranges in rising order; raises UserError for what is no image.

        What takes time may begin at the call: call it early.
        """

    def shard(self, ranks: ProcessGroup, batch_size: int) -> Iterator[Batch]:
        """This process's share of all images, in batches that are the same whoever gets them."""
        return self.batches(ranks.shard(ranges(len(self), batch_size)))

    known_by_reading = False  # whether `source` is quick once all images were read, and slow before

    def begin(self) -> None:  # noqa: B027
        """Begin in a thread what `source` takes time for and no reading tells."""

    def gather(self, ranks: ProcessGroup) -> None:  # noqa: B027
        """Put together what the processes learnt by reading their shares; every one of which must call it."""

    @abstractmethod
    def source(self) -> dict[str, Any]:
        """Plain values that identify the images, for the protocol; no paths of this machine."""

    def content(self) -> dict[str, str]:
        """What more identifies them once all were read, and after `gather`."""
        return {}

    def state(self) -> str:
        """Changes with the files even where `source` does not; for caches of this machine."""
        return ""

    def images(self, numbers: Sequence[int]) -> Tensor:
        """A few images, uint8 (n, 3, H, W), for a preview; numbers rise."""
        parts = [range(number, number + 1) for number in numbers]
        return torch.cat([images for images, _, _ in self.batches(parts)])


class NpzImages(ImageList):
    """arr_0, uint8 (N, H, W, 3), and labels in arr_1 or `labels` where there are some: ADM's format.

    Raises:
        UserError: another dtype or shape, a damaged file, pickled objects.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = NpzFile(path)
        self.rows = self.file.rows("arr_0")
        shape, where = self.rows.shape, f"{self.file.path}, array arr_0,"
        if self.rows.dtype != np.uint8:
            raise UserError(f"{where} is {self.rows.dtype}; images must be uint8, 0 to 255 (round, do not truncate)")
        if len(shape) != 4 or shape[3] != 3:
            raise UserError(f"{where} has shape {shape}; expected (images, height, width, 3)")
        names = [name for name in ("arr_1", "labels") if name in self.file]
        self.labels = self._read_labels(names[0]) if names else None

    def _read_labels(self, name: str) -> Tensor:
        labels = self.file.array(name)
        if labels.shape != (len(self),) or labels.dtype.kind not in "iu":
            shape = f"{labels.dtype} {labels.shape}"
            raise UserError(f"{self.file.path}, array {name}, is {shape}; expected one class number an image")
        return torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return self.rows.shape[0]

    def batches(self, parts: Sequence[range]) -> Iterator[Batch]:
        for rows, array in zip(parts, self.rows.batches(parts), strict=True):
            yield _batch(array, self.labels, rows)

    def begin(self) -> None:
        self._hash  # noqa: B018

    def source(self) -> dict[str, Any]:
        return {"kind": "npz", "name": self.file.path.name, "sha256": self._hash.result(), "pictures": len(self)}

    @cached_property
    def _hash(self) -> Future[str]:
        return in_background(self.file.sha256)


class BlockImages(ImageList):
    """The blocks of a directory, all there."""

    def __init__(self, directory: BlockDirectory) -> None:
        self.directory, self.labels = directory, directory.plan.labels

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, parts: Sequence[range]) -> Iterator[Batch]:
        size = self.directory.plan.block_size
        for rows in parts:
            blocks = range(rows.start // size, (rows.stop - 1) // size + 1)
            arrays = [self.directory.read(block) for block in blocks]
            first = rows.start - blocks.start * size
            yield _batch(np.concatenate(arrays)[first : first + len(rows)], self.labels, rows)

    def source(self) -> dict[str, Any]:
        return {"kind": "drawn", "pictures": len(self)}


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches with their images on the device; on a GPU the next ones are read and sent while these are worked on."""
    if device.type != "cuda":
        yield from batches
        return
    stream, before = torch.cuda.Stream(device), None
    for images, labels, numbers in prefetch(map(_pinned, batches), DEPTH):
        with torch.cuda.stream(stream):
            moved = images.to(device, non_blocking=True)  # from pinned memory it returns at once
            arrived = stream.record_event()
        if before is not None:
            yield _arrived(*before)
        before = moved, labels, numbers, arrived
    if before is not None:
        yield _arrived(*before)


def joined(images: Sequence[Tensor]) -> Tensor:
    """One after the other; for a process that works on a GPU in pinned memory."""
    shape = sum(map(len, images)), *images[0].shape[1:]
    # A process that works on the CPU leaves GPUs alone.
    return torch.cat(images, out=torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_initialized()))


def _pinned(batch: Batch) -> Batch:
    return batch[0].pin_memory(), *batch[1:]


def _arrived(images: Tensor, labels: Tensor | None, numbers: Tensor, arrived: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream(images.device)
    current.wait_event(arrived)
    images.record_stream(current)
    return images, labels, numbers


def _batch(array: np.ndarray, labels: Tensor | None, rows: range) -> Batch:
    """From rows of an array, uint8 (B, H, W, 3)."""
    images = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)
    numbers = torch.arange(rows.start, rows.stop)
    return images, None if labels is None else labels[numbers], numbers
