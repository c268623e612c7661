"""Scores of the (EMA) tokenizer's reconstructions in validation: reconstruction FID, PSNR, SSIM and LPIPS."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from aim_lightning.callbacks.evaluation.scoring import Scoring
from aim_lightning.callbacks.find_callback import find_callback
from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.callbacks.training.stop_request import between
from aim_lightning.evaluation.reference import Reference
from aim_lightning.metrics import metric_name
from aim_lightning.metrics.features import FEATURES
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.utils.pixels import to_uint8, to_unit_range
from aim_lightning.utils.precision import exact_float32
from aim_lightning.utils.progress import progress


class ReconstructionMetrics(Scoring):
    """Log the Fréchet distance between all validation images and their reconstructions.

    Logged as `rfid_50k` on the published Inception, `rfd_effnet_lite0_10k` on the stand-in. Images are encoded
    and decoded in float32, independent of the precision of training. Runs in `validate`, and during training every
    `every_n_validations` validations.
    """

    def score(self, trainer: Trainer, pl_module: LightningModule, in_validate: bool) -> None:
        """Reconstruct this rank's share of the validation set and log the value over all ranks."""
        distance = FrechetDistance(self.features.num_features).to(pl_module.device)
        reference = self.reference(trainer, "val", probe=False)
        distance.load_gaussian(*reference.gaussians[FEATURES], reference.count)
        batches = progress(trainer.datamodule.val_dataloader(), "reconstructions", unit="batches")
        for batch in between(trainer, batches, "the next reconstructions to score"):
            distance.update_features(self.features(self._reconstructed(pl_module, batch["images"])), real=False)
        count = len(self.images.open("val"))
        name = metric_name("r" + self.features.metric_name, count, raw=find_callback(trainer, EMA) is None)
        self.log(f"metrics/{name}", distance.compute().float(), rank_zero_only=False)

    def protocol(self) -> dict[str, Any]:
        """Return everything that the values depend on, for results.json."""
        return {
            "features": self.features.protocol(),
            "reference": Reference(None, self.images, "val").identity(),
            "precision": "float32, uint8 images",
        }

    @staticmethod
    @torch.no_grad()
    def _reconstructed(pl_module: LightningModule, images: Tensor) -> Tensor:
        network, device = pl_module.network, pl_module.device
        with exact_float32(device.type):
            return to_uint8(network(to_unit_range(images.to(device))).images_BCHW)


class NamedReconstructionScores(Callback):
    """Log `psnr_10k`, `ssim_10k` and `lpips_10k` in `validate`, with `_raw` at the end without EMA.

    The values are those of `val/psnr` and so on. Their names contain the number of images, which
    `trainer.limit_val_batches` may reduce.
    """

    needs = ("images",)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the values on every rank; Lightning calls this hook before the module's, which resets them."""
        if trainer.state.fn == "validate":
            for name, value in pl_module.scores.named(raw=find_callback(trainer, EMA) is None).items():
                self.log(f"metrics/{name}", value, rank_zero_only=False)

    def protocol(self) -> dict[str, Any]:
        """Return everything but weights and count that the values depend on, for results.json."""
        precision = "float32, reconstructions clamped, not rounded"
        return {"reference": self.images.open("val").fingerprint, "precision": precision}
