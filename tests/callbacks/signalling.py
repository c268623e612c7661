"""Callbacks for tests: one rank gets a signal in the middle of an evaluation or a validation."""

import os
import signal
import time

from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.evaluation import incremental


class Signalling(Callback):
    """Send SIGTERM to this rank only, while it generates samples.

    Args:
        rank: the rank that gets the signal.
        block: the count of its blocks, over all evaluations.
    """

    def __init__(self, rank: int, block: int) -> None:
        self.rank, self.block, self.generated = rank, block, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == self.rank:
            original = incremental.generate_blocks

            def generate_blocks(*arguments):
                for images in original(*arguments):
                    self.generated += 1
                    if self.generated == self.block:
                        os.kill(os.getpid(), signal.SIGTERM)
                    yield images

            incremental.generate_blocks = generate_blocks


class SignallingValidation(Callback):
    """Send a signal to this rank only, at its first validation batch.

    Args:
        rank: the rank that gets the signal.
        name: of the signal.
    """

    def __init__(self, rank: int, name: str) -> None:
        self.rank, self.number = rank, signal.Signals[name]

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.global_rank == self.rank and batch_idx == 0:
            os.kill(os.getpid(), self.number)


class SlowStep(Callback):
    """Make the batch after a step take a minute.

    Args:
        step: optimizer steps before it.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        if trainer.global_step == self.step:
            time.sleep(60)
