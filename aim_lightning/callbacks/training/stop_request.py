"""How a run stops at a signal: the steps from SIGTERM or SIGUSR1 to the exit code.

1. `cluster.signals`: the handler sets a flag and returns. Nothing is interrupted, not even a checkpoint being written.
2. `StopRequest` (here): all ranks exchange their flags and agree on the most urgent one. Who calls it, and when:
   `Preemption` before each optimizer step, `TrainingEvaluation` before each round of blocks, and `ValidationStop` in
   `validate` before each batch of validation and of scoring.
3. `Preemption.stop` writes a checkpoint, then raises `Stopped` on every rank. An evaluation is abandoned before, and
   the next start repeats it. `validate` raises `Stopped` without results.
4. `cli.fit_lifecycle` catches `Stopped` in `fit`. On rank 0, `cli.slurm.in_job.requeue_after` requeues the job where
   `cluster.requeue` decides so, and records the exit code.
5. `slurm ended`, the last line of job.sbatch, requeues the job where training could not do it.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.find_callback import find_callback
from aim_lightning.cluster import signals
from aim_lightning.cluster.signals import Stopped
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import beat

Item = TypeVar("Item")


class StopRequest:
    """Agreement of all ranks on the most urgent signal that any rank has received.

    Every rank must call the same methods equally often. The exchange runs over gloo on CPUs, also where training uses
    NCCL, so that it never waits for a GPU.

    Args:
        world_size: number of ranks; creating the group is a collective.
    """

    def __init__(self, world_size: int) -> None:
        self.group = torch.distributed.new_group(backend="gloo") if world_size > 1 else None
        self.pending: torch.distributed.Work | None = None
        self.answer = torch.zeros(2, dtype=torch.int64)  # the most urgent signal, and 1 if a rank has more work

    @property
    def any_busy(self) -> bool:
        """Return True if any rank had more work in the latest finished exchange."""
        return bool(self.answer[1])

    def exchange(self, signal: int, busy: bool = True) -> int:
        """Start an exchange and return the result of the previous one, so that it overlaps with a step.

        Args:
            signal: NONE, TERM, USR1 or INT. A single rank gets it back immediately.
            busy: this rank has more work.
        """
        agreed = self.finish()
        if agreed:  # the same on all ranks, so that none of them starts another exchange
            return agreed
        self.answer = torch.tensor([signal, int(busy)])
        if self.group is None:
            return signal
        # MAX: the most urgent signal wins, and one busy rank keeps the others in the loop.
        op = torch.distributed.ReduceOp.MAX
        self.pending = torch.distributed.all_reduce(self.answer, op, group=self.group, async_op=True)
        return signals.NONE

    def agree(self, signal: int, busy: bool = True) -> int:
        """Exchange signals and wait for the result; arguments as in `exchange`."""
        return self.exchange(signal, busy) or self.finish()

    def finish(self) -> int:
        """Return the result of the pending exchange; NONE without one."""
        if self.pending is None:
            return signals.NONE
        self.pending.wait()
        self.pending = None
        return int(self.answer[0])


class ValidationStop(Callback):
    """Raise `Stopped` on every rank of `validate` before the same batch; put it before all callbacks that score.

    Ranks may have different numbers of batches. A rank that is done joins the exchanges of the others.

    Args:
        step: optimizer steps in the checkpoint.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.request = StopRequest(trainer.world_size)
        keep_handlers(trainer)
        beat("the work before the first validation batch")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.check(f"validation batch {batch_idx}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish("the end of validation")

    def finish(self, phase: str) -> None:
        """Join the exchanges of the other ranks until all are done."""
        while self.check(phase, busy=False):
            pass

    def check(self, phase: str, busy: bool = True) -> bool:
        """Return True if any rank has more work.

        Args:
            phase: the next piece of work, for the log and the watchdog.
            busy: this rank has more work.

        Raises:
            Stopped: a rank has received a signal.
        """
        signal = self.request.agree(received(phase), busy)
        if signal:
            log(f"{signals.NAMES[signal]}: stopping before {phase}, without results")
            raise Stopped(signal, self.step)
        return self.request.any_busy


def between(trainer: Trainer, items: Iterable[Item], phase: str) -> Iterator[Item]:
    """Yield this rank's items and report each to the watchdog; in `validate`, a signal can stop all ranks.

    Every rank must exhaust it.

    Args:
        trainer: of a training or a validation.
        items: of this rank.
        phase: the next piece of work, for the log and the watchdog.

    Raises:
        UserError: an item is unreadable; the other ranks are done by then.
    """
    stop = find_callback(trainer, ValidationStop)
    before_item, finish = (stop.check, stop.finish) if stop else (beat, beat)
    try:
        for item in items:
            before_item(phase)
            yield item
    except UserError:
        # Without it the other ranks would wait in their next exchange, and never reach the error.
        finish(phase)
        raise
    finish(phase)


def keep_handlers(trainer: Trainer) -> None:
    """Restore the signal handlers that Triton's LLVM replaces, before the first step."""
    if trainer.strategy.root_device.type == "cuda":
        wake_llvm()
    signals.keep()


def wake_llvm() -> None:
    """Make LLVM install its handlers now (see `signals.keep`), not in the first step, which may compile for minutes."""
    try:
        from triton._C.libtriton import ir  # private: the smallest call that initialises LLVM

        context = ir.context()
        ir.load_dialects(context)
        ir.pass_manager(context).run(ir.builder(context).create_module(), "signals")
    except Exception:  # no Triton, or another version: `signals.keep` after the first step is enough
        return


def received(phase: str) -> int:
    """Return this rank's most urgent signal, after a heartbeat.

    Args:
        phase: the next piece of work, for the watchdog.
    """
    beat(phase)
    signals.keep()
    return signals.received()
