"""What both DataModules share: the global batch, the seed and the cursor."""

from abc import abstractmethod

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from aim_lightning.data.stream import BatchPlan, Cursor
from aim_lightning.data.stream_loader import MicroBatches, StreamLoader
from aim_lightning.utils.errors import UserError


class StreamDataModule(LightningDataModule):
    """A training stream in one global order a (seed, epoch), resumable by its cursor.

    Subclasses give the rows and the micro-batches. Batches are dictionaries; `index` holds dataset rows and
    `epoch` the epoch, so that everything random later can be a function of them.
    """

    def __init__(self, global_batch_size: int, max_device_batch_size: int | None, num_workers: int, seed: int) -> None:
        super().__init__()
        self.global_batch_size = global_batch_size
        self.max_device_batch_size = max_device_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.cursor = Cursor()
        self.steps_elsewhere = 0  # beyond what the cursor says, where earlier epochs had other lengths
        self.plan: BatchPlan | None = None

    @property
    @abstractmethod
    def train_rows(self) -> int:
        """Rows of the training set (known after `setup`)."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex sha256 of the training set, another one for other rows or another order (known after `setup`)."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names by label (known after `setup`)."""

    @abstractmethod
    def micro_batches(self, plan: BatchPlan, rank: int) -> MicroBatches:
        """The training stream of one rank."""

    def plan_for(self, world_size: int) -> BatchPlan:
        """Share the global batch out over so many devices; `fit` calls it before training."""
        self.plan = BatchPlan.make(self.global_batch_size, world_size, self.max_device_batch_size)
        return self.plan

    @property
    def batches_per_epoch(self) -> int:
        """Global batches, that is optimizer steps, an epoch."""
        return self._known_plan().batches_per_epoch(self.train_rows)

    @property
    def steps(self) -> int:
        """Global batches trained on since the beginning."""
        return self.steps_elsewhere + self.cursor.epoch * self.batches_per_epoch + self.cursor.batch

    def identity(self) -> dict[str, str | int]:
        """What a checkpoint keeps of the training set: `rows`, `fingerprint`, and `steps` trained on it."""
        return {"rows": self.train_rows, "fingerprint": self.fingerprint, "steps": self.steps}

    def restore(self, cursor: dict[str, int], identity: dict[str, str | int] | None) -> None:
        """Go on from a checkpoint; an epoch that has become shorter than what was read of it is over.

        Args:
            cursor: `Cursor.state` in the checkpoint.
            identity: `identity` in the checkpoint; None in those of before, whose epochs count as being as long as now.
        """
        self.cursor.restore(cursor)
        if self.cursor.batch >= self.batches_per_epoch:
            self.cursor.restore({"epoch": self.cursor.epoch + 1, "batch": 0})
        self.steps_elsewhere = 0
        self.steps_elsewhere = identity["steps"] - self.steps if identity else 0

    def advance(self) -> None:
        """One global batch has been trained on."""
        self.cursor.advance(self.batches_per_epoch)

    def train_dataloader(self) -> DataLoader:
        """Ready micro-batches, from the cursor on."""
        dataset = self.micro_batches(self._known_plan(), self.trainer.global_rank)
        return StreamLoader(dataset, self.cursor, self.num_workers)

    def _known_plan(self) -> BatchPlan:
        if self.plan is None:
            raise UserError("the batch plan is unknown: call datamodule.plan_for(world_size) before training")
        return self.plan
