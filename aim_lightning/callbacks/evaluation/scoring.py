"""What callbacks that score images by a feature network share: when they run, and their reference."""

from abc import abstractmethod
from functools import partial

from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.callbacks.training.stop_request import between
from aim_lightning.evaluation.reference import Reference
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.utils.dist import ProcessGroup


class Scoring(Callback):
    """Runs in `validate`, and during training every `every_n_validations` validations.

    Args:
        every_n_validations: 0 = in `validate` alone.
        batch_size: images scored at once on a device.
        cache_dir: where reference statistics are kept, by data and feature network.
    """

    needs: tuple[str, ...] = ("features", "images")

    def __init__(self, every_n_validations: int, batch_size: int, cache_dir: str) -> None:
        self.every_n_validations, self.batch_size, self.cache_dir = every_n_validations, batch_size, cache_dir
        self.validations = 0

    @abstractmethod
    def score(self, trainer: Trainer, pl_module: LightningModule, alone: bool) -> None:
        """Log everything; `alone` = in `validate`. Every rank calls it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the feature network's weights where they will be needed, before anything else takes time."""
        if stage == "validate" or self.every_n_validations:
            self.features.load(trainer.strategy.root_device)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validations += 1
        alone = trainer.state.fn == "validate"
        if alone or (self.every_n_validations and self.validations % self.every_n_validations == 0):
            self.features.to(pl_module.device)
            self.score(trainer, pl_module, alone)

    def state_dict(self) -> dict:
        return {"validations": self.validations}

    def load_state_dict(self, state: dict) -> None:
        self.validations = state["validations"]

    def reference(self, trainer: Trainer, split: str, probe: bool) -> ReferenceImages:
        """Statistics of the real images of a split, from the cache or shared out over the ranks; all call it."""
        reference = Reference(None, self.images, split)
        looking = partial(between, trainer, phase="the next images of the reference")
        return reference.statistics(self.features, ProcessGroup(), self.cache_dir, self.batch_size, probe, looking)


def has_ema(trainer: Trainer) -> bool:
    """Whether validation sees averaged weights."""
    return any(isinstance(callback, EMA) for callback in trainer.callbacks)
