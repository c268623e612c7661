"""The count of rows that `data.on_corrupt skip` replaces, and its limit."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.utils.errors import UserError


class CorruptRecords(Callback):
    """Count the rows that replace those of corrupt records; the command line always adds it.

    With `data.on_corrupt` ``skip``, it logs the count over all devices as data/replaced_rows. It stops the run when an
    epoch has more of them than `data.skip_limit`. The counts are in the checkpoint.

    Raises:
        UserError: on every rank at the same step, above the limit.
    """

    def __init__(self) -> None:
        self.total = self.in_epoch = 0
        self.pending: torch.Tensor | None = None  # not yet fetched from the device

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        data = trainer.datamodule
        if getattr(data, "on_corrupt", "stop") != "skip":
            return
        # The sum stays on the device: fetching it at every step would wait for the GPU.
        replaced = batch["replaced"]
        self.pending = replaced if self.pending is None else self.pending + replaced
        epoch_ends = data.cursor.batch == 0
        boundary = (batch_idx + 1) % data.plan.accumulate == 0
        if boundary and (epoch_ends or data.steps % trainer.log_every_n_steps == 0):
            self._reduce_pending(trainer)
            self.log("data/replaced_rows", float(self.total))
            self._check(data)
            self.in_epoch = 0 if epoch_ends else self.in_epoch

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self._reduce_pending(trainer)
        checkpoint["replaced_rows"] = {"total": self.total, "in_epoch": self.in_epoch}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        counts = checkpoint.get("replaced_rows") or {"total": 0, "in_epoch": 0}
        self.total, self.in_epoch = counts["total"], counts["in_epoch"]

    def _reduce_pending(self, trainer: Trainer) -> None:
        if self.pending is None:
            return
        # A collective, at steps that all ranks derive from the cursor.
        count = int(trainer.strategy.reduce(self.pending.to(torch.int64), reduce_op="sum"))
        self.total, self.in_epoch, self.pending = self.total + count, self.in_epoch + count, None

    def _check(self, data) -> None:
        if self.in_epoch > data.skip_limit:
            limit = f"more than data.skip_limit {data.skip_limit}; restore the shards named above, or raise the limit"
            raise UserError(f"{self.in_epoch} rows of this epoch stood in for rows of corrupt records, {limit}")
