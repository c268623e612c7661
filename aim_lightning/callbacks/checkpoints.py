"""When checkpoints are written and which are kept."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from aim_lightning.callbacks.tensorboard import flush
from aim_lightning.runs.directory import list_checkpoints
from aim_lightning.utils.errors import UserError


class Checkpoints(Checkpoint):
    """Writes checkpoints/step=NNNNNNNN.ckpt in the run directory.

    Saves just before the next batch, when everything about the last step, its log lines and a validation that was
    due included, is done and on disk: a run killed right after has no gap in its curves.

    Args:
        every_n_steps: optimizer steps between two checkpoints; the last step always gets one.
        keep_last: how many of the latest stay.

    Raises:
        UserError: a number below 1.
    """

    needs = ("run_dir",)

    def __init__(self, every_n_steps: int = 1000, keep_last: int = 2) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep_last", keep_last)):
            if value < 1:
                raise UserError(f"callbacks.checkpoints.{name} is {value}; it must be at least 1")
        self.every_n_steps, self.keep_last = every_n_steps, keep_last
        self.saved_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        whole_step = batch_idx % trainer.datamodule.plan.accumulate == 0
        if whole_step and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self.saved_step:
            return
        self.saved_step = trainer.global_step
        flush(trainer)
        path = f"{self.run_dir}/checkpoints/step={trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)  # "weights only" means: without optimizers
        if trainer.is_global_zero:
            for path in list_checkpoints(self.run_dir)[self.keep_last :]:
                path.unlink()
