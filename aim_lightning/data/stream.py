"""The arithmetic of the training stream: who reads which rows when.

There is one global order a (seed, epoch). Global batch b takes positions [b * G, (b + 1) * G) of it, cut into
micro-batches of the device's size: accumulation step m of rank r is the m * world + r-th piece. The position is
therefore one number without rank or worker; the tail of an epoch that fills no global batch is left out (other
rows every epoch, since the order changes).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from aim_lightning.utils.errors import UserError


@dataclass
class Cursor:
    """Where training stands: global batches of `epoch` already trained on."""

    epoch: int = 0
    batch: int = 0

    def advance(self, batches_per_epoch: int) -> None:
        """One global batch further."""
        self.batch += 1
        if self.batch >= batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def state(self) -> dict[str, int]:
        return asdict(self)

    def restore(self, state: dict[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is shared out.

    global_batch_size = world_size * micro_batch_size * accumulate.
    """

    global_batch_size: int
    world_size: int
    accumulate: int

    @property
    def micro_batch_size(self) -> int:
        """Rows a device sees at once."""
        return self.global_batch_size // (self.world_size * self.accumulate)

    @classmethod
    def make(cls, global_batch_size: int, world_size: int, max_device_batch_size: int | None = None) -> "BatchPlan":
        """The fewest accumulation steps that keep a device's batch within its limit.

        Raises:
            UserError: the global batch cannot be shared out evenly.
        """
        each, odd = divmod(global_batch_size, world_size)
        if odd or not each:
            raise UserError(
                f"data.global_batch_size {global_batch_size} does not divide over {world_size} devices; "
                f"set a multiple of {world_size}"
            )
        limit = each if max_device_batch_size is None else max_device_batch_size
        if limit < 1:
            raise UserError(f"data.max_device_batch_size is {limit}; it must be at least 1")
        accumulate = -(-each // limit)
        if each % accumulate:
            raise UserError(
                f"data.global_batch_size {global_batch_size} over {world_size} devices is {each} rows each, which "
                f"does not divide into {accumulate} equal parts of at most {limit} (data.max_device_batch_size)"
            )
        return cls(global_batch_size, world_size, accumulate)

    def batches_per_epoch(self, rows: int) -> int:
        """Whole global batches in so many rows.

        Raises:
            UserError: not even one.
        """
        if rows < self.global_batch_size:
            raise UserError(
                f"the training set has {rows} rows, fewer than data.global_batch_size {self.global_batch_size}"
            )
        return rows // self.global_batch_size

    def first_row(self, micro: int, rank: int) -> int:
        """Where a rank's micro-batch begins, counted in the order of its global batch (micro = 0) or of all of them."""
        return (micro * self.world_size + rank) * self.micro_batch_size

    def positions(
        self, rows: int, first_batch: int, rank: int, worker: int = 0, num_workers: int = 1
    ) -> Iterator[slice]:
        """Slices of the global order for one worker of one rank, from `first_batch` to the end of the epoch.

        Loader workers take micro-batches in turn, counted from the first one after the start.
        """
        first, last = first_batch * self.accumulate, self.batches_per_epoch(rows) * self.accumulate
        for micro in range(first + worker, last, num_workers):
            start = self.first_row(micro, rank)
            yield slice(start, start + self.micro_batch_size)
