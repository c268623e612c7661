"""Stop training between two optimizer steps, with everything in a checkpoint; `stop_request` explains all steps."""

import time
import traceback
from collections import deque
from statistics import median

from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.find_callback import find_callback
from aim_lightning.callbacks.training.checkpoints import Checkpoints
from aim_lightning.callbacks.training.stop_request import StopRequest, keep_handlers, received
from aim_lightning.cluster import job_registry, signals
from aim_lightning.cluster.signals import Stopped
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import beat

LONGER = 1.2  # times the longest pause so far: worth writing immediately


class Preemption(Callback):
    """Raise `Stopped` on every rank after a signal; the command line always adds it.

    It also reports progress to the watchdog, and records the seconds on which `cluster.signal_lead` depends.

    Args:
        run_dir: directory of timings.json.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self.last_boundary: tuple[float, int] | None = None  # seconds, optimizer steps
        self.first_step = 0  # optimizer steps before this process
        self.longest_pause = 0.0
        self.pauses: deque[float] = deque(maxlen=1000)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.request = StopRequest(trainer.world_size)
        keep_handlers(trainer)
        beat("restoring, and the first batch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if batch_idx % trainer.datamodule.plan.accumulate:  # within an accumulation no checkpoint is possible
            return
        self._measure(trainer)
        if signal := self.request.exchange(received(f"the batch after step {trainer.global_step}")):
            self.stop(trainer, signal)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        beat(f"the work after batch {batch_idx} (logging, validation, reading)")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        beat(f"validation batch {batch_idx}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        beat("the metrics after a validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.request.finish()  # a pending all-reduce must not outlive its group
        self._record(trainer)
        beat("the end of training")

    def check(self, trainer: Trainer, phase: str) -> int:
        """Return the signal that all ranks agree on in long work between two batches; NONE = continue.

        Args:
            trainer: of the training.
            phase: the next piece of work, for the watchdog.
        """
        self._measure(trainer)
        return self.request.agree(received(phase))

    def stop(self, trainer: Trainer, signal: int) -> None:
        """Write a checkpoint between two batches and raise `Stopped`; every rank must call it.

        Args:
            trainer: of the training.
            signal: TERM, USR1 or INT.

        Raises:
            Stopped: always.
        """
        log(f"{signals.NAMES[signal]}: stopping before the next batch, at step {trainer.global_step}")
        beat("the checkpoint before stopping")
        saved = False
        try:
            if checkpoints := find_callback(trainer, Checkpoints):
                saved = checkpoints.save(trainer)
        except UserError as error:
            log(f"warning: {error}")
        except Exception:  # printed only: the job must be requeued
            traceback.print_exc()
        self._record(trainer)
        raise Stopped(signal, trainer.global_step, saved)

    def _measure(self, trainer: Trainer) -> None:
        """Add the pause until now, except the one with this process's first step, which compiles kernels."""
        now, step = time.perf_counter(), trainer.global_step
        if self.last_boundary is None:
            self.first_step = step
            self._record_start(trainer)
        elif self.last_boundary[1] > self.first_step:
            pause = now - self.last_boundary[0]
            self.pauses.append(pause)
            much_longer = pause > LONGER * self.longest_pause
            self.longest_pause = max(self.longest_pause, pause)
            if much_longer:  # a job that ends inside the next such pause writes nothing
                self._record(trainer)
        self.last_boundary = now, step

    def _record_start(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        now, stopped_at = time.time(), job_registry.read_timings(self.run_dir).get("stopped_at")
        start = now - signals.BORN
        values = {"start_seconds": start, "stopped_at": 0}
        if stopped_at:
            values["stop_to_first_step_seconds"] = waited = now - stopped_at
            log(f"first batch {waited:.1f} s after the stop; {start:.1f} s of them since this process started")
        job_registry.record_timings(self.run_dir, **values)

    def _record(self, trainer: Trainer) -> None:
        checkpoints = find_callback(trainer, Checkpoints)
        if trainer.is_global_zero and self.pauses:
            slowest = checkpoints.slowest if checkpoints else 0.0
            values = {"longest_pause_seconds": self.longest_pause, "step_seconds": median(self.pauses)}
            job_registry.record_timings(self.run_dir, **values, checkpoint_seconds=slowest)
