"""Decoding in loader workers: planned batches of images, every one of the same shape."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aim_lightning.data.images.dataset import ImageDataset
from aim_lightning.data.images.decode import UnreadableImage
from aim_lightning.data.tokens.format.shard_plan import TokenizeOptions
from aim_lightning.utils.errors import UserError


@dataclass
class LoadedBatch:
    """Images of some rows; slots of unreadable ones, and those after the last row, are black.

    bases: uint8 (batch_size, 3, S, S), one a transform of the views; skipped: reason by row.
    """

    rows: range
    bases: list[Tensor]
    skipped: dict[int, str]

    def pin_memory(self) -> "LoadedBatch":
        """Called by the DataLoader: page-locked memory is copied to a GPU while it computes."""
        self.bases = [base.pin_memory() for base in self.bases]
        return self


class ImageBatches(Dataset):
    """One item a planned batch."""

    def __init__(self, images: ImageDataset, options: TokenizeOptions, batches: list[range]) -> None:
        self.source, self.batches, self.options = images.source, batches, options
        self.transforms = options.views.transforms(images.transform)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> LoadedBatch:
        rows, size = self.batches[number], self.options.batch_size
        bases = [torch.zeros(size, 3, t.image_size, t.image_size, dtype=torch.uint8) for t in self.transforms]
        skipped = {}
        for slot, row in enumerate(rows):
            try:
                versions = self._read(row)
            except UnreadableImage as error:
                if self.options.on_error == "error":
                    raise UserError(f"{error}, or leave such images out with --on_error skip") from None
                skipped[row] = str(error)
                continue
            for base, version in zip(bases, versions, strict=True):
                base[slot] = version
        return LoadedBatch(rows, bases, skipped)

    def _read(self, row: int) -> list[Tensor]:
        record = self.source[row]
        try:
            return [transform(record.image, 0) for transform in self.transforms]
        except UserError as error:
            raise UserError(f"{record.key}: {error}") from None


def load(
    images: ImageDataset,
    options: TokenizeOptions,
    batches: list[range],
    num_workers: int,
    device: torch.device,
) -> Iterator[LoadedBatch]:
    """The batches in order, read ahead by `num_workers` processes (0 = in this one)."""
    dataset = ImageBatches(images, options, batches)
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            collate_fn=_as_it_is,  # not torch's conversion, which knows no ranges
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # otherwise the iterator draws from the global one
        )
    )


def _as_it_is(batch: LoadedBatch) -> LoadedBatch:
    return batch
