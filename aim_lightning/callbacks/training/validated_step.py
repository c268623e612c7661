"""Remembers which step the latest validation was of."""

from lightning.pytorch import Callback, LightningModule, Trainer


class ValidatedStep(Callback):
    """`step`: optimizer steps at the latest validation of this process; None before the first."""

    def __init__(self) -> None:
        self.step: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.step = trainer.global_step
