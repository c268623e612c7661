"""Arithmetic of the training stream: which rank reads which rows at which step.

One global order exists per (seed, epoch). Global batch b takes its positions [b * G, (b + 1) * G), cut into
micro-batches: accumulation step m of rank r is part m * world_size + r. A single number without rank or worker
therefore describes the position. The tail of an epoch that fills no global batch is left out; it contains other rows in
every epoch because the order changes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from aim_lightning.utils.errors import UserError


@dataclass
class Cursor:
    """Position of training: the epoch, and the number of its global batches already trained on."""

    epoch: int = 0
    batch: int = 0

    def advance(self, batches_per_epoch: int) -> None:
        """Move past one global batch.

        Args:
            batches_per_epoch: global batches per epoch; the last one starts the next epoch.
        """
        self.batch += 1
        if self.batch >= batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def state(self) -> dict[str, int]:
        """Return the position for a checkpoint."""
        return asdict(self)

    def restore(self, state: dict[str, int]) -> None:
        """Set the position from a checkpoint.

        Args:
            state: result of `state`.
        """
        self.epoch, self.batch = state["epoch"], state["batch"]


@dataclass(frozen=True)
class BatchPlan:
    """Division of a global batch into micro-batches.

    global_batch_size = world_size * micro_batch_size * accumulate.
    """

    global_batch_size: int
    world_size: int
    accumulate: int

    @property
    def micro_batch_size(self) -> int:
        """Return the rows per device and forward pass."""
        return self.global_batch_size // (self.world_size * self.accumulate)

    @classmethod
    def make(
        cls, global_batch_size: int, world_size: int, max_device_batch_size: int | str | None = None
    ) -> "BatchPlan":
        """Return the plan with the fewest accumulation steps within the limit per device.

        Args:
            global_batch_size: rows per optimizer step, over all devices.
            world_size: number of devices.
            max_device_batch_size: largest micro-batch; None or ``auto`` = no limit.

        Raises:
            UserError: the global batch cannot be divided evenly.
        """
        per_device, remainder = divmod(global_batch_size, world_size)
        where = f"data.global_batch_size {global_batch_size}"
        if remainder or not per_device:
            raise UserError(f"{where} does not divide over {world_size} devices; set a multiple of {world_size}")
        limit = per_device if max_device_batch_size in (None, "auto") else max_device_batch_size
        accumulate = -(-per_device // limit)
        if per_device % accumulate:
            parts = f"{accumulate} equal parts of at most {limit} (data.max_device_batch_size)"
            raise UserError(f"{where} is {per_device} rows per device; these do not divide into {parts}")
        return cls(global_batch_size, world_size, accumulate)

    def batches_per_epoch(self, rows: int) -> int:
        """Return the number of complete global batches.

        Args:
            rows: rows of the training set.

        Raises:
            UserError: there is none.
        """
        size = self.global_batch_size
        if rows < size:
            raise UserError(f"the training set has {rows} rows, fewer than data.global_batch_size {size}")
        return rows // size

    def first_row(self, micro: int, rank: int) -> int:
        """Return the position of a micro-batch's first row.

        Args:
            micro: index of the accumulation step; within the global batch, or within the epoch.
            rank: global rank.
        """
        return (micro * self.world_size + rank) * self.micro_batch_size

    def positions(
        self, rows: int, first_batch: int, rank: int, worker: int = 0, num_workers: int = 1
    ) -> Iterator[slice]:
        """Yield slices of the global order for a worker of a rank, up to the end of the epoch.

        Loader workers take micro-batches round-robin, starting with the first one after the start.

        Args:
            rows: rows of the training set.
            first_batch: global batch to start at.
            rank: global rank.
            worker: index of the loader worker.
            num_workers: number of loader workers of the rank.
        """
        first, last = first_batch * self.accumulate, self.batches_per_epoch(rows) * self.accumulate
        for micro in range(first + worker, last, num_workers):
            start = self.first_row(micro, rank)
            yield slice(start, start + self.micro_batch_size)
