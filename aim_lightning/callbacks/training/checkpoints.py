"""When checkpoints are written and which are kept."""

import math
import time
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

LOOK_EVERY = 10  # optimizer steps between two looks at the clock, which all ranks take together


class Checkpoints(Checkpoint):
    """Writes checkpoints/step=NNNNNNNN.ckpt in the run directory.

    Saves just before the next batch, when everything about the last step, its log lines and a validation that was
    due included, is done and on disk: a run killed right after has no gap in its curves. A file is written beside
    its place, read back, compared with its checksums and renamed; only then are older ones removed. When the disk
    does not take one, the older ones stay, and training goes on to the next attempt; the last step insists.

    Args:
        every_n_steps: optimizer steps between two checkpoints; the last step always gets one. null = by time alone.
        every_n_minutes: minutes since the last checkpoint, by the clock of the first process, looked at every 10
            steps. null = by steps alone.
        keep_last: how many of the latest stay.
        keep_best: how many of the best stay besides; each is written after the validation that found it so.
        monitor: what they are best at, a metric of the validation.
        mode: ``min`` or ``max`` is best.

    Raises:
        UserError: a number below 1, no policy at all, or a monitor that no validation logs.
    """

    needs = ("run_dir",)

    def __init__(
        self,
        every_n_steps: int | None = 1000,
        every_n_minutes: float | None = None,
        keep_last: int = 2,
        keep_best: int = 0,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        _check(every_n_steps, every_n_minutes, keep_last, keep_best)
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.keep_last, self.keep_best, self.monitor, self.mode = keep_last, keep_best, monitor, mode
        self.best: list[tuple[float, int]] = []  # (value, step), best first
        self.candidate: tuple[float, int] | None = None  # of the last validation
        self.saved_step, self.saved_at = 0, 0.0
        self.slowest = 0.0  # seconds of the longest save in this process

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.keep_best and trainer.state.fn == "fit" and not trainer.sanity_checking:
            value = trainer.strategy.broadcast(_value(trainer, self.monitor))
            self.candidate = (value, trainer.global_step) if math.isfinite(value) else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        whole_step = batch_idx % trainer.datamodule.plan.accumulate == 0
        if whole_step and trainer.global_step != self.saved_step and self._due(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, insist=True)
        if self.best and trainer.is_global_zero:
            found = ", ".join(f"step {step} ({value:z.4f})" for value, step in self.best)
            log(f"best checkpoints by {self.monitor}: {found}")

    def state_dict(self) -> dict:
        return {"monitor": self.monitor, "mode": self.mode, "best": [list(entry) for entry in self.best]}

    def load_state_dict(self, state: dict) -> None:
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):
            self.best = [(value, step) for value, step in state["best"]]

    def save(self, trainer: Trainer, insist: bool = False) -> bool:
        """Write a checkpoint between two batches, unless this step has one; every rank calls it.

        Returns:
            Whether there is one of this step now; never of step 0, which needs none.

        Raises:
            UserError: the disk does not take it, with `insist`; without, that is printed.
        """
        if trainer.global_step == self.saved_step:
            return self.saved_step > 0
        start, before = time.monotonic(), self.best
        flush(trainer)
        self.best = self._ranked(trainer.global_step)
        failure = write_or_tell(trainer, f"{self.run_dir}/checkpoints/step={trainer.global_step:08d}.ckpt")
        self.slowest = max(self.slowest, time.monotonic() - start)
        self.saved_at = time.monotonic()
        if failure:
            self.best = before
            self._tell(failure, insist)
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
        if self.every_n_minutes is None or step % LOOK_EVERY:
            return False
        return trainer.strategy.broadcast(time.monotonic() - self.saved_at >= 60 * self.every_n_minutes)

    def _ranked(self, step: int) -> list[tuple[float, int]]:
        """The best with this step among them, if its validation says so."""
        known = [entry for entry in self.best if entry[1] != step]
        if self.candidate and self.candidate[1] == step:
            known.append(self.candidate)
        sign = 1 if self.mode == "min" else -1
        return sorted(known, key=lambda entry: (sign * entry[0], entry[1]))[: self.keep_best]

    def _tell(self, failure: str, insist: bool) -> None:
        kept = list_checkpoints(self.run_dir)
        failure += f"; {kept[0].name} is kept" if kept else "; there is no earlier one"
        if insist:
            raise UserError(f"{failure}; make room and run the same command again")
        log(f"warning: {failure}; training goes on, the next attempt is at the next checkpoint")

    def _remove_others(self) -> None:
        best = {step for _, step in self.best}
        for path in list_checkpoints(self.run_dir)[self.keep_last :]:
            if step_of(path) not in best:
                with tolerate_disk_errors(path):
                    path.unlink(missing_ok=True)


def write_or_tell(trainer: Trainer, path: str | Path) -> str | None:
    """Write a checkpoint, every rank calls it; a disk that does not take it leaves the file that was there.

    trainer.save_checkpoint would leave the other ranks waiting for the one that failed.

    Returns:
        What kept it from being written, the same answer on all ranks; None when it is there.

    Raises:
        UserError: on all ranks, when the content could not be read again.
    """
    content, failure = dump_checkpoint(trainer), None
    try:
        trainer.strategy.save_checkpoint(content, path)
    except UserError as error:
        failure = error
    failure = trainer.strategy.broadcast(failure)
    if failure is None or isinstance(failure, CheckpointNotWritten):
        return failure and str(failure)
    raise failure


def _check(every_n_steps: int | None, every_n_minutes: float | None, keep_last: int, keep_best: int) -> None:
    if every_n_steps is None and every_n_minutes is None:
        raise UserError("callbacks.checkpoints: every_n_steps and every_n_minutes are both null; set one of them")
    for name, value, least in (
        ("every_n_steps", every_n_steps, 1),
        ("keep_last", keep_last, 1),
        ("keep_best", keep_best, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"callbacks.checkpoints.{name} is {value}; it must be at least {least}")
    if every_n_minutes is not None and every_n_minutes <= 0:
        raise UserError(f"callbacks.checkpoints.every_n_minutes is {every_n_minutes}; it must be above 0")


def _value(trainer: Trainer, monitor: str) -> float:
    if monitor not in trainer.callback_metrics:
        known = ", ".join(sorted(trainer.callback_metrics)) or "none"
        raise UserError(f"callbacks.checkpoints.monitor {monitor} is logged by no validation; there are: {known}")
    return float(trainer.callback_metrics[monitor])
