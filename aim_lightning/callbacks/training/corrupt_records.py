"""Watches over what `data.on_corrupt skip` leaves out."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.utils.errors import UserError


class CorruptRecords(Callback):
    """Always on; the command line adds it. Acts when `data.on_corrupt` is ``skip``.

    Logs data/replaced_rows: rows so far that stood in for those of corrupt records, over all devices, and
    stops when an epoch has more of them than `data.skip_limit`. The counts are in the checkpoint.

    Raises:
        UserError: on every rank at the same step, past the limit.
    """

    def __init__(self) -> None:
        self.total = self.in_epoch = 0
        self.pending: torch.Tensor | None = None  # of the present steps, not yet fetched from the device

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        data = trainer.datamodule
        if getattr(data, "on_corrupt", "stop") != "skip":
            return
        mine = batch["replaced"]
        self.pending = mine if self.pending is None else self.pending + mine
        epoch_ends = data.cursor.batch == 0
        boundary = (batch_idx + 1) % data.plan.accumulate == 0
        if boundary and (epoch_ends or data.steps % trainer.log_every_n_steps == 0):
            self._take_in(trainer)
            self.log("data/replaced_rows", float(self.total))
            self._check(data)
            self.in_epoch = 0 if epoch_ends else self.in_epoch

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self._take_in(trainer)
        checkpoint["replaced_rows"] = {"total": self.total, "in_epoch": self.in_epoch}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        counts = checkpoint.get("replaced_rows") or {"total": 0, "in_epoch": 0}
        self.total, self.in_epoch = counts["total"], counts["in_epoch"]

    def _take_in(self, trainer: Trainer) -> None:
        if self.pending is None:
            return
        count = int(trainer.strategy.reduce(self.pending.to(torch.int64), reduce_op="sum"))
        self.total, self.in_epoch, self.pending = self.total + count, self.in_epoch + count, None

    def _check(self, data) -> None:
        if self.in_epoch > data.skip_limit:
            raise UserError(
                f"{self.in_epoch} rows of this epoch stood in for rows of corrupt records, more than data.skip_limit "
                f"{data.skip_limit}: restore the shards named above, or raise the limit; the last checkpoint is kept"
            )
