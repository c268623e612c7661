"""The common part of callbacks that score images in validation: their interval, their reference and their stop."""

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import partial

from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.find_callback import find_callback
from aim_lightning.callbacks.training.stop_request import ValidationStop, between
from aim_lightning.cluster import signals
from aim_lightning.evaluation.reference import Reference
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.utils.dist import ProcessGroup


@dataclass(eq=False, kw_only=True)
class Scoring(Callback):
    """Score images in `validate`, and during training every `every_n_validations` validations.

    Args:
        every_n_validations: 0 = in `validate` only.
        batch_size: images scored per step and device.
        cache_dir: directory of reference statistics.
    """

    needs = ("features", "images")

    every_n_validations: int = 0
    batch_size: int = 250
    cache_dir: str = ".cache/reference"
    validations: int = field(default=0, init=False)

    @abstractmethod
    def score(self, trainer: Trainer, pl_module: LightningModule, in_validate: bool) -> None:
        """Log all values. Every rank must call it.

        Args:
            trainer: of the validation.
            pl_module: with the weights to score.
            in_validate: the `validate` command runs, not training.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the feature network first: missing weights are reported before anything takes time."""
        if stage == "validate" or self.every_n_validations:
            self.features.load(trainer.strategy.root_device)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score if this validation is due."""
        if trainer.sanity_checking:
            return
        self.validations += 1
        in_validate = trainer.state.fn == "validate"
        if in_validate or (self.every_n_validations and self.validations % self.every_n_validations == 0):
            self.features.to(pl_module.device)
            self.score(trainer, pl_module, in_validate)

    def state_dict(self) -> dict:
        """Return the number of validations."""
        return {"validations": self.validations}

    def load_state_dict(self, state: dict) -> None:
        """Restore the number of validations."""
        self.validations = state["validations"]

    def reference(self, trainer: Trainer, split: str, probe: bool) -> ReferenceImages:
        """Return the statistics of a split of the experiment's images. Every rank must call it."""
        options = self.cache_dir, self.batch_size, probe, partial(between, trainer, phase="the next reference images")
        return Reference(None, self.images, split).statistics(self.features, ProcessGroup(), *options)

    @staticmethod
    def stop(trainer: Trainer, phase: str) -> int:
        """Raise `Stopped` on all ranks where one has received a signal in `validate`; else return 0."""
        if stop := find_callback(trainer, ValidationStop):
            stop.check(phase)
        return signals.NONE
