"""Base classes of the DataModules, which read the training stream from a cursor on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from aim_lightning.data.stream import BatchPlan, Cursor
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import outlive_signals, reading

Batch = dict[str, torch.Tensor]


class MicroBatches(IterableDataset, ABC):
    """Micro-batches of one rank and epoch; the length is that of the whole epoch, whatever the start.

    After a resume Lightning counts the batches of the epoch from its start, so the length must not shrink.
    """

    # Lightning would replace the sampler of a map-style dataset; an iterable one keeps the order of the plan.
    def __init__(self, rows: int, plan: BatchPlan, rank: int, seed: int) -> None:
        self.rows = rows
        self.plan = plan
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return self.plan.batches_per_epoch(self.rows) * self.plan.accumulate

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return self.read(self.plan.positions(self.rows, self.first_batch, self.rank, worker, workers))

    @abstractmethod
    def read(self, positions: Iterator[slice]) -> Iterator[Batch]:
        """Yield one batch per slice of the global order of `self.epoch`.

        Args:
            positions: increasing slices.
        """


class BatchLoader(DataLoader):
    """DataLoader of ready batches; a signal can abort a read that blocks.

    Args:
        dataset: its items are batches.
        num_workers: loader processes.
        cursor: start of each epoch of training; None for validation.
        pin_memory: copy batches to pinned memory, from which a GPU reads without waiting.
    """

    def __init__(
        self, dataset: Dataset, num_workers: int, cursor: Cursor | None = None, pin_memory: bool = False
    ) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # without it every iterator advances the global one, and so training's dropout
            worker_init_fn=outlive_signals,
        )
        self.cursor = cursor

    def __iter__(self) -> Iterator[Batch]:
        # Workers get a copy of the dataset when the iterator is created: set the position before that.
        if self.cursor is not None:
            self.dataset.epoch, self.dataset.first_batch = self.cursor.epoch, self.cursor.batch
        return _marked(super().__iter__())


def _marked(batches: Iterator[Batch]) -> Iterator[Batch]:
    # Only the wait for a batch is marked: a signal during the step itself must lead to a checkpoint.
    while True:
        with reading():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class StreamDataModule(LightningDataModule):
    """A training stream in one global order per (seed, epoch), resumable by its cursor.

    Subclasses provide the rows and the micro-batches. Batches are dictionaries. `index` contains dataset rows and
    `epoch` the epoch, so that later random choices can be functions of them.
    """

    def __init__(
        self, global_batch_size: int, max_device_batch_size: int | str | None, num_workers: int, seed: int
    ) -> None:
        super().__init__()
        self.global_batch_size = global_batch_size
        self.max_device_batch_size = max_device_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.cursor = Cursor()
        self.steps_offset = 0  # steps that the cursor does not count: earlier epochs may have had other lengths
        self.plan: BatchPlan | None = None

    @property
    @abstractmethod
    def train_rows(self) -> int:
        """Return the number of training rows; available after `setup`."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hex sha256 that identifies rows and order of the training set; available after `setup`."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Return class names by label; available after `setup`."""

    @abstractmethod
    def micro_batches(self, plan: BatchPlan, rank: int) -> MicroBatches:
        """Return the training stream of one rank.

        Args:
            plan: division of the global batch.
            rank: global rank.
        """

    def plan_for(self, world_size: int) -> BatchPlan:
        """Divide the global batch over the devices; `fit` calls this before training.

        Args:
            world_size: number of devices.
        """
        self.plan = BatchPlan.make(self.global_batch_size, world_size, self.max_device_batch_size)
        return self.plan

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of global batches (optimizer steps) per epoch."""
        return self._planned().batches_per_epoch(self.train_rows)

    @property
    def steps(self) -> int:
        """Return the number of global batches trained on since the start of training."""
        return self.steps_offset + self.cursor.epoch * self.batches_per_epoch + self.cursor.batch

    def identity(self) -> dict[str, str | int]:
        """Return the facts for a checkpoint: `rows` and `fingerprint` of the set, steps trained, micro-batch."""
        sizes = {"steps": self.steps, "micro_batch_size": self._planned().micro_batch_size}
        return {"rows": self.train_rows, "fingerprint": self.fingerprint, **sizes}

    def restore(self, cursor: dict[str, int], identity: dict[str, str | int] | None) -> None:
        """Continue from a checkpoint; if the epoch is now shorter than its trained part, start the next epoch.

        Args:
            cursor: `Cursor.state` of the checkpoint.
            identity: `identity` of the checkpoint; None if it has none (imported weights).
        """
        self.cursor.restore(cursor)
        if self.cursor.batch >= self.batches_per_epoch:
            self.cursor.restore({"epoch": self.cursor.epoch + 1, "batch": 0})
        # Reset first: `steps` includes the offset.
        self.steps_offset = 0
        self.steps_offset = identity["steps"] - self.steps if identity else 0

    def advance(self) -> None:
        """Move the cursor past one global batch."""
        self.cursor.advance(self.batches_per_epoch)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of this rank's micro-batches, starting at the cursor."""
        dataset = self.micro_batches(self._planned(), self.trainer.global_rank)
        # Training only: pinning creates a CUDA context in each process, and a validation batch is too rare to gain.
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return BatchLoader(dataset, self.num_workers, self.cursor, pin_memory=on_gpu)

    def _planned(self) -> BatchPlan:
        if self.plan is None:
            raise UserError("the batch plan is unknown: call datamodule.plan_for(world_size) before training")
        return self.plan
