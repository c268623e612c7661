"""Scores reconstructions of the (EMA) tokenizer against the images themselves: the reconstruction FID."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from aim_lightning.callbacks.evaluation.scoring import Scoring, has_ema
from aim_lightning.callbacks.training.stop_request import between
from aim_lightning.evaluation.reference import Reference
from aim_lightning.metrics import metric_name
from aim_lightning.metrics.features import FEATURES
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.utils.pixels import to_uint8, to_unit_range
from aim_lightning.utils.precision import exact_float32


class ReconstructionMetrics(Scoring):
    """Fréchet distance between all validation images and their reconstructions.

    Logged as `rfid_50k` on the published Inception, `rfd_effnet_lite0_10k` on the stand-in. Images are encoded
    and decoded in float32, whatever precision training uses. Runs in `validate`, and during training every
    `every_n_validations` validations.

    Args:
        every_n_validations: 0 = in `validate` alone.
        batch_size: images of the reference scored at once on a device.
        cache_dir: where reference statistics are kept, by data and feature network.
    """

    def __init__(
        self, every_n_validations: int = 0, batch_size: int = 250, cache_dir: str = ".cache/reference"
    ) -> None:
        super().__init__(every_n_validations, batch_size, cache_dir)

    def score(self, trainer: Trainer, pl_module: LightningModule, alone: bool) -> None:
        """Every rank reconstructs its share of the validation set and gets the value over all."""
        distance = FrechetDistance(self.features).to(pl_module.device)
        reference = self.reference(trainer, "val", probe=False)
        distance.load_gaussian(*reference.gaussians[FEATURES], reference.count)
        loader = trainer.datamodule.val_dataloader()
        shown = tqdm(loader, "reconstructions", leave=False, disable=not trainer.is_global_zero)
        for batch in between(trainer, shown, "the next reconstructions to score"):
            distance.update_fake(self._reconstructed(pl_module, batch["images"]))
        count = len(self.images.open("val"))
        name = metric_name("r" + self.features.metric_name, count, raw=not has_ema(trainer))
        self.log(f"metrics/{name}", distance.compute().float(), rank_zero_only=False)

    def protocol(self) -> dict[str, Any]:
        """Everything that the numbers depend on, for results.json."""
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
