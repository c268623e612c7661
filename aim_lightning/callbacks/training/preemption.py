"""Stops at a batch boundary on which all ranks agree, with everything in a checkpoint."""

import time
import traceback
from collections import deque
from statistics import median

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.training.checkpoints import Checkpoints
from aim_lightning.cluster import signals, step_timings
from aim_lightning.cluster.signals import Stopped
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import beat

MUCH = 1.2  # times the longest pause so far


def wake_llvm() -> None:
    """Have LLVM take the signals now (see `signals.keep`), not in the first step, whose kernels may take minutes."""
    try:
        from triton._C.libtriton import ir

        context = ir.context()
        ir.load_dialects(context)
        ir.pass_manager(context).run(ir.builder(context).create_module(), "signals")
    except Exception:  # no Triton, or one that works otherwise: the boundary after the first step does it
        return


class Agreement:
    """The most urgent signal that any rank has seen, the same answer on all ranks at the same boundary.

    One integer a boundary over gloo on processors, also when training itself uses NCCL: no GPU is waited for. The
    answer to a boundary's exchange is taken at the next one, so that its travel costs nothing.
    """

    def __init__(self, world_size: int) -> None:
        self.group = torch.distributed.new_group(backend="gloo") if world_size > 1 else None
        self.pending: torch.distributed.Work | None = None
        self.value = torch.zeros(1, dtype=torch.int64)

    def exchange(self, mine: int) -> int:
        """Say what this rank has seen; hear what all had seen one boundary ago (at once with a single rank)."""
        if self.group is None:
            return mine
        agreed = self.finish()
        if not agreed:
            self.value.fill_(mine)
            op = torch.distributed.ReduceOp.MAX
            self.pending = torch.distributed.all_reduce(self.value, op, group=self.group, async_op=True)
        return agreed

    def now(self, mine: int) -> int:
        """Likewise, but waits for the answer: for long pauses of training."""
        return self.exchange(mine) or self.finish()

    def finish(self) -> int:
        """The answer to the exchange that is on its way; NONE when there is none."""
        if self.pending is None:
            return signals.NONE
        self.pending.wait()
        self.pending = None
        return int(self.value)


class Preemption(Callback):
    """Always on; the command line adds it. Raises `Stopped` on every rank.

    Also tells the watchdog that training moves on, and keeps the seconds on which the signal lead depends.

    Args:
        run_dir: for step_timings.json.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self.last_boundary: tuple[float, int] | None = None  # when, and optimizer steps done
        self.first_step = 0  # steps done before this process
        self.longest_pause = 0.0
        self.pauses: deque[float] = deque(maxlen=1000)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.agreement = Agreement(trainer.world_size)
        if trainer.strategy.root_device.type == "cuda":
            wake_llvm()
        signals.keep()
        beat("restoring, and the first batch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if batch_idx % trainer.datamodule.plan.accumulate:
            return
        self._measure(trainer)
        beat(f"the batch after step {trainer.global_step}")
        signals.keep()
        agreed = self.agreement.exchange(signals.received())
        if agreed:
            self.stop(trainer, agreed)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        beat(f"what follows batch {batch_idx} (logging, validation, reading)")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        beat(f"validation batch {batch_idx}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        beat("the metrics after a validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.agreement.finish()
        self._keep(trainer)
        beat("the end of training")

    def asked(self, trainer: Trainer, phase: str) -> int:
        """In long work between two batches, every rank equally often: what signal the ranks agree on, NONE to go on.

        Args:
            trainer: of the training.
            phase: what comes next, for the watchdog.
        """
        self._measure(trainer)
        beat(phase)
        signals.keep()
        return self.agreement.now(signals.received())

    def stop(self, trainer: Trainer, agreed: int) -> None:
        """Write a checkpoint and raise `Stopped`; between two batches, on every rank."""
        name, step = signals.NAMES[agreed], trainer.global_step
        log(f"{name}: stopping before the next batch, at step {step}")
        checkpoints = _checkpoints(trainer)
        beat("the checkpoint before stopping")
        saved = _save(checkpoints, trainer) if checkpoints else False
        self._keep(trainer)
        raise Stopped(agreed, step, saved)

    def _measure(self, trainer: Trainer) -> None:
        """The pause until now, unless it holds this process's first step, in which kernels are tuned and compiled."""
        now, step = time.perf_counter(), trainer.global_step
        if self.last_boundary is None:
            self.first_step = step
            self._first(trainer)
        elif self.last_boundary[1] > self.first_step:
            self.pauses.append(now - self.last_boundary[0])
            self._longest(trainer, self.pauses[-1])
        self.last_boundary = now, step

    def _longest(self, trainer: Trainer, pause: float) -> None:
        """Kept at once where it is much longer than before: a job that ends inside such a pause writes nothing."""
        much = pause > MUCH * self.longest_pause
        self.longest_pause = max(self.longest_pause, pause)
        if much:
            self._keep(trainer)

    def _first(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        now = time.time()
        waited = step_timings.since_stop(step_timings.read(self.run_dir), now)
        start = now - signals.BORN
        values = {"start_seconds": start, "stopped_at": 0}
        if waited is not None:
            values["stop_to_first_step_seconds"] = waited
            log(f"first batch {waited:.1f} s after the stop; {start:.1f} s of them since this process began")
        step_timings.record(self.run_dir, **values)

    def _keep(self, trainer: Trainer) -> None:
        checkpoints = _checkpoints(trainer)
        if trainer.is_global_zero and self.pauses:
            step_timings.record(
                self.run_dir,
                longest_pause_seconds=self.longest_pause,
                step_seconds=median(self.pauses),
                checkpoint_seconds=checkpoints.slowest if checkpoints else 0.0,
            )


def _save(checkpoints: Checkpoints, trainer: Trainer) -> bool:
    """Whether there is a checkpoint now. Whatever goes wrong is shown and ends nothing: the job must be requeued."""
    try:
        return checkpoints.save(trainer)
    except UserError as error:
        log(f"warning: {error}")
    except Exception:
        traceback.print_exc()
    return False


def _checkpoints(trainer: Trainer) -> Checkpoints | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)), None)
