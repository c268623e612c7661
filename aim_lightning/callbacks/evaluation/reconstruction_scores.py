"""PSNR, SSIM and LPIPS of reconstructions, under names that results.json can be compared by."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.evaluation.scoring import has_ema


class NamedReconstructionScores(Callback):
    """In `validate`: `psnr_10k`, `ssim_10k` and `lpips_10k` of so many validation images, `…_raw` without EMA.

    The values are those of `val/psnr` and so on, whose names tell nothing of `trainer.limit_val_batches`.
    """

    needs = ("images",)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning calls it before the module's own, which forgets the values; every rank takes part."""
        if trainer.state.fn == "validate":
            for name, value in pl_module.scores.named(raw=not has_ema(trainer)).items():
                self.log(f"metrics/{name}", value, rank_zero_only=False)

    def protocol(self) -> dict[str, Any]:
        """Everything that the numbers depend on but weights and count, for results.json."""
        precision = "float32, reconstructions clamped, not rounded"
        return {"reference": self.images.open("val").fingerprint, "precision": precision}
