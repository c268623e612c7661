"""Write checkpoints and remove old ones."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from aim_lightning.callbacks.logging.tensorboard import flush
from aim_lightning.checkpoint.io import CheckpointNotWritten
from aim_lightning.runs.directory import list_checkpoints, step_of
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import tolerate_disk_errors
from aim_lightning.utils.lightning_private import dump_checkpoint
from aim_lightning.utils.logging import log
from aim_lightning.utils.ranges import Range, check_arguments

CLOCK_INTERVAL = 10  # optimizer steps between two collective readings of the clock


@dataclass(eq=False, kw_only=True)
class Checkpoints(Checkpoint):
    """Write checkpoints/step=NNNNNNNN.ckpt in the run directory.

    It saves just before the next batch, after the logs and a due validation of the last step. A run that is killed
    right after therefore has no gap in its curves. A file is written under another name, verified and renamed. Older
    ones are removed only then. If the write fails, they stay and training continues, except at the last step.

    Args:
        every_n_steps: optimizer steps between two checkpoints; the last step always gets one. null = by time only.
        every_n_minutes: minutes since the last checkpoint by rank 0's clock, read every 10 steps. null = by
            steps only.
        keep_last: number of latest checkpoints that are kept.
        keep_best: number of best checkpoints that are kept in addition; written after their validation.
        monitor: metric of the validation by which they are ranked.
        mode: ``min`` or ``max`` of the metric is best.

    Raises:
        UserError: a number below 1, no interval, or a monitor that no validation logs.
    """

    needs = ("run_dir",)
    every_n_steps: int | None = 1000
    every_n_minutes: float | None = None
    keep_last: int = 2
    keep_best: int = 0
    monitor: str = "val/loss"
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.every_n_steps is None and self.every_n_minutes is None:
            raise UserError("callbacks.checkpoints: every_n_steps and every_n_minutes are both null; set one of them")
        ranges = {"every_n_minutes": Range(above=True), "keep_best": Range(0)}
        check_arguments("callbacks.checkpoints.", Checkpoints, vars(self), Range(1), **ranges)
        self.best: list[tuple[float, int]] = []  # (value, step), best first
        self.candidate: tuple[float, int] | None = None  # of the last validation
        self.saved_step = 0
        self.saved_at = 0.0
        self.slowest = 0.0  # seconds of the longest save in this process

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.keep_best and trainer.state.fn == "fit" and not trainer.sanity_checking:
            if self.monitor not in trainer.callback_metrics:
                names = ", ".join(sorted(trainer.callback_metrics)) or "none"
                fault = f"callbacks.checkpoints.monitor: no validation logs {self.monitor}"
                raise UserError(f"{fault}; use one of: {names}")
            # Broadcast rank 0's value: all ranks must agree on whether a checkpoint is due.
            value = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
            self.candidate = (value, trainer.global_step) if math.isfinite(value) else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        first_batch = batch_idx % trainer.datamodule.plan.accumulate == 0
        if first_batch and trainer.global_step != self.saved_step and self._due(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, required=True)
        if self.best and trainer.is_global_zero:
            best = ", ".join(f"step {step} ({value:z.4f})" for value, step in self.best)
            log(f"best checkpoints by {self.monitor}: {best}")

    def state_dict(self) -> dict:
        return {"monitor": self.monitor, "mode": self.mode, "best": [list(entry) for entry in self.best]}

    def load_state_dict(self, state: dict) -> None:
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):
            self.best = [(value, step) for value, step in state["best"]]

    def save(self, trainer: Trainer, required: bool = False) -> bool:
        """Write a checkpoint between two batches, unless this step has one; every rank must call it.

        Args:
            trainer: of the training.
            required: raise an error if the write fails, instead of a warning.

        Returns:
            True if this step has a checkpoint; False at step 0, which needs none.

        Raises:
            UserError: a required checkpoint could not be written.
        """
        if trainer.global_step == self.saved_step:
            return self.saved_step > 0
        start, previous_best = time.monotonic(), self.best
        flush(trainer)  # flush curves first: they must include the step that a resumed run continues from
        self.best = self._ranked(trainer.global_step)
        failure = write_or_report(trainer, f"{self.run_dir}/checkpoints/step={trainer.global_step:08d}.ckpt")
        self.slowest = max(self.slowest, time.monotonic() - start)
        self.saved_at = time.monotonic()
        if failure:
            self.best = previous_best
            kept = list_checkpoints(self.run_dir)
            failure += f"; {kept[0].name} is kept" if kept else "; there is no earlier checkpoint"
            if required:
                raise UserError(f"{failure}; free disk space and run the same command again")
            log(f"warning: {failure}; training continues until the next checkpoint")
            return False
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._remove_others()
        return True

    def _due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0:
            return True
        if step in (entry[1] for entry in self._ranked(step)):
            return True
        if self.every_n_minutes is None or step % CLOCK_INTERVAL:
            return False
        # Broadcast rank 0's clock: a rank that saves alone would hang in the collectives of a save.
        return trainer.strategy.broadcast(time.monotonic() - self.saved_at >= 60 * self.every_n_minutes)

    def _ranked(self, step: int) -> list[tuple[float, int]]:
        """Return the best checkpoints, this step included if its validation ranks it among them."""
        entries = [entry for entry in self.best if entry[1] != step]
        if self.candidate and self.candidate[1] == step:
            entries.append(self.candidate)
        sign = 1 if self.mode == "min" else -1
        return sorted(entries, key=lambda entry: (sign * entry[0], entry[1]))[: self.keep_best]

    def _remove_others(self) -> None:
        best = {step for _, step in self.best}
        for path in list_checkpoints(self.run_dir)[self.keep_last :]:
            if step_of(path) not in best:
                with tolerate_disk_errors(path):
                    path.unlink(missing_ok=True)


def write_or_report(trainer: Trainer, path: str | Path) -> str | None:
    """Write a checkpoint; a failed write keeps an existing file. Every rank must call it.

    Args:
        trainer: of the training.
        path: of the file.

    Returns:
        The reason why it was not written, on all ranks; None after success.

    Raises:
        UserError: on all ranks, if the content could not be loaded again.
    """
    content, failure = dump_checkpoint(trainer), None
    try:
        trainer.strategy.save_checkpoint(content, path)
    except UserError as error:
        failure = error
    # Only rank 0 writes. Its failure ends all ranks together, where a barrier would leave the others waiting.
    failure = trainer.strategy.broadcast(failure)
    if failure is None or isinstance(failure, CheckpointNotWritten):
        return failure and str(failure)
    raise failure
