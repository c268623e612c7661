"""From the stream's arithmetic to a torch DataLoader of ready micro-batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from aim_lightning.data.stream import BatchPlan, Cursor
from aim_lightning.utils.process import outlive_signals

Batch = dict[str, torch.Tensor]


class MicroBatches(IterableDataset, ABC):
    """One epoch's micro-batches of one rank; its length counts the whole epoch, wherever it starts.

    Lightning counts batches of the epoch itself after a resume, so that the length must not shrink.
    """

    def __init__(self, rows: int, plan: BatchPlan, rank: int, seed: int) -> None:
        self.rows, self.plan, self.rank, self.seed = rows, plan, rank, seed
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return self.plan.batches_per_epoch(self.rows) * self.plan.accumulate

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return self.read(self.plan.positions(self.rows, self.first_batch, self.rank, worker, workers))

    @abstractmethod
    def read(self, positions: Iterator[slice]) -> Iterator[Batch]:
        """Batches for increasing slices of the global order of `self.epoch`."""


class StreamLoader(DataLoader):
    """Hands its MicroBatches the place to start from each time an epoch begins."""

    def __init__(self, dataset: MicroBatches, cursor: Cursor, num_workers: int) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise every iterator draws from the global one
            worker_init_fn=outlive_signals,
        )
        self.cursor = cursor

    def __iter__(self):
        # Workers get a copy of the dataset when the iterator is made: set the place before that.
        self.dataset.epoch, self.dataset.first_batch = self.cursor.epoch, self.cursor.batch
        return super().__iter__()
