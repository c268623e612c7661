"""A callback for tests: one rank gets a signal in the middle of an evaluation."""

import os
import signal

from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.evaluation import incremental


class Signalling(Callback):
    """SIGTERM to this process alone when it draws.

    Args:
        rank: which process.
        draw: which of its blocks.
    """

    def __init__(self, rank: int, draw: int) -> None:
        self.rank, self.draw, self.drawn = rank, draw, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == self.rank:
            original = incremental.draw_block

            def draw_block(*arguments):
                self.drawn += 1
                if self.drawn == self.draw:
                    os.kill(os.getpid(), signal.SIGTERM)
                return original(*arguments)

            incremental.draw_block = draw_block


class SignallingValidation(Callback):
    """A signal to this process alone, at its first validation batch or just before the scores.

    Args:
        rank: which process.
        name: of the signal.
    """

    def __init__(self, rank: int, name: str) -> None:
        self.rank, self.number = rank, signal.Signals[name]

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.global_rank == self.rank and batch_idx == 0:
            os.kill(os.getpid(), self.number)
