"""Stage 1: the VQ tokenizer learns to reconstruct pictures through a codebook."""

from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from aim_lightning.models import VQConfig, VQModel
from aim_lightning.models.vq.model import Reconstruction
from aim_lightning.modules.optim import (
    OptimizerConfig,
    build_optimizer,
    check_finite,
    clip_gradients,
    total_steps,
)
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_unit_range
from aim_lightning.utils.random import hash_seed


@dataclass(frozen=True)
class TokenizerLoss:
    """Weights of the loss.

    Args:
        reconstruction: ``l1`` or ``l2`` between pictures in [-1, 1].
        reconstruction_weight: of that term.
        codebook_weight: pulls codes to latents.
        commitment_weight: pulls latents to codes.
    """

    reconstruction: Literal["l1", "l2"] = "l2"
    reconstruction_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    def terms(self, images: Tensor, result: Reconstruction) -> dict[str, Tensor]:
        """Unweighted terms and `loss`, their weighted sum."""
        distance = F.l1_loss if self.reconstruction == "l1" else F.mse_loss
        reconstruction = distance(result.images_BCHW.float(), images)
        codebook, commitment = result.quantized.codebook_loss, result.quantized.commitment_loss
        loss = (
            self.reconstruction_weight * reconstruction
            + self.codebook_weight * codebook
            + self.commitment_weight * commitment
        )
        return {
            "loss": loss,
            "reconstruction": reconstruction,
            "codebook": codebook,
            "commitment": commitment,
        }


class TokenizerModule(LightningModule):
    """Trains a VQModel; manual optimisation, since adversarial training needs several optimizers.

    Args:
        network: sizes of the tokenizer.
        optimizer: AdamW and its schedule.
        global_batch_size: images an optimizer step; take it from the data section by interpolation.
        loss: terms and their weights.
        gradient_clip: largest L2 norm of the gradient; null = no clipping.
        codebook_init: ``random``, or ``data`` to start the codebook from the first batch's latents.
        channels_last: memory format of the convolutions.
        seed: of the codebook's start from data.
    """

    def __init__(
        self,
        network: VQConfig,
        optimizer: OptimizerConfig,
        global_batch_size: int,
        loss: TokenizerLoss,
        gradient_clip: float | None = 1.0,
        codebook_init: Literal["random", "data"] = "random",
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        # Each rank records its own codes; broadcasting the record would also hang ranks with unequal shares.
        self._ddp_params_and_buffers_to_ignore = ["network.quantize.codebook_used"]
        self.network = VQModel(network)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)
        self.optimizer_config, self.global_batch_size, self.loss = optimizer, global_batch_size, loss
        self.gradient_clip, self.codebook_init, self.seed = gradient_clip, codebook_init, seed
        self.psnr = PeakSignalNoiseRatio(data_range=2.0)
        self.ssim = StructuralSimilarityIndexMeasure(data_range=2.0)
        self.val_loss, self.val_reconstruction = MeanMetric(), MeanMetric()
        self.code_counts: Tensor | None = None

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Before the very first step, set the codebook from data where asked for (rank 0's, sent to all)."""
        if self.codebook_init == "data" and self.global_step == 0 and batch_idx == 0:
            generator = torch.Generator().manual_seed(hash_seed("codebook_init", self.seed))
            with torch.no_grad():
                self.network.quantize.start_from(self.network.latent(self._images(batch)), generator)
            weight = self.network.quantize.embedding.weight
            weight.data.copy_(self.trainer.strategy.broadcast(weight.detach().cpu()).to(weight.device))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        images = self._images(batch)
        terms = self.loss.terms(images, self.network(images))
        accumulate = self.trainer.datamodule.plan.accumulate
        self.manual_backward(terms["loss"] / accumulate)
        if (batch_idx + 1) % accumulate == 0:
            self.log("train/loss", terms["loss"], prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in terms.items() if name != "loss"})
            self._optimizer_step()

    def _optimizer_step(self) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        norm = clip_gradients(self.network, self.gradient_clip)
        self.log("train/grad_norm", norm)
        check_finite(norm, "the gradient norm", self.global_step)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    def on_validation_epoch_start(self) -> None:
        self.code_counts = torch.zeros(self.network.codebook_size, device=self.device, dtype=torch.int64)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        images = self._images(batch)
        result = self.network(images)
        reconstructed = result.images_BCHW.float().clamp(-1, 1)
        self.psnr.update(reconstructed, images)
        self.ssim.update(reconstructed, images)
        codes = result.quantized.codes_BL.flatten()
        self.code_counts += torch.bincount(codes, minlength=len(self.code_counts))
        terms = self.loss.terms(images, result)
        self.val_loss.update(terms["loss"], weight=len(images))
        self.val_reconstruction.update(terms["reconstruction"], weight=len(images))

    def on_validation_epoch_end(self) -> None:
        metrics = {
            "psnr": self.psnr,
            "ssim": self.ssim,
            "loss": self.val_loss,
            "reconstruction": self.val_reconstruction,
        }
        for name, metric in metrics.items():
            self.log(f"val/{name}", metric.compute(), prog_bar=name == "psnr")
            metric.reset()
        share = self.trainer.strategy.reduce(self.code_counts.float(), reduce_op="sum")
        share = share / share.sum().clamp(min=1)
        entropy = -(share * share.clamp(min=1e-12).log()).sum()
        self.log("val/codebook_usage", (share > 0).float().mean())
        self.log("val/codebook_perplexity", entropy.exp())

    def configure_optimizers(self) -> tuple[list, list]:
        if self.trainer.precision == "16-mixed":
            raise UserError("the tokenizer is trained in 32-true or bf16-mixed; set trainer.precision")
        steps = total_steps(self.trainer)
        optimizer, schedule = build_optimizer(self.network, self.optimizer_config, self.global_batch_size, steps)
        return [optimizer], [schedule]

    def _images(self, batch: dict[str, Tensor]) -> Tensor:
        return to_unit_range(batch["images"]).contiguous(memory_format=self.memory_format)
