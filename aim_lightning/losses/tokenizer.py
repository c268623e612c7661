"""The tokenizer's loss but for the adversarial term."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from aim_lightning.losses.entropy import entropy_loss
from aim_lightning.models.vq.model import Reconstruction
from aim_lightning.utils.errors import UserError


@dataclass
class LossTerms:
    """What one batch gives, scalars.

    pixels: weighted reconstruction and perceptual distance; loss: weighted sum of all terms; each: the unweighted
    terms by name.
    """

    pixels: Tensor
    loss: Tensor
    each: dict[str, Tensor]


@dataclass(frozen=True)
class TokenizerLoss:
    """LossTerms and their weights; a weight of 0 leaves perceptual and entropy term out altogether.

    Args:
        reconstruction: ``l1`` or ``l2`` between images in [-1, 1].
        reconstruction_weight: of that term.
        perceptual_weight: of LPIPS on VGG16 (arXiv 1801.03924); 0 needs no file.
        perceptual_file: torchvision's VGG16 weights (vgg16-397923af.pth); nothing is downloaded.
        codebook_weight: pulls codes to latents.
        commitment_weight: pulls latents to codes.
        entropy_weight: of the entropy term: sure choices, all codes used alike.
        entropy_temperature: of the softmax over codes in that term.

    Raises:
        UserError: a negative weight, or a perceptual weight without a file.
    """

    reconstruction: Literal["l1", "l2"] = "l2"
    reconstruction_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_file: str | None = None
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01

    def __post_init__(self) -> None:
        for name in ("reconstruction", "perceptual", "codebook", "commitment", "entropy"):
            if (weight := getattr(self, f"{name}_weight")) < 0:
                raise UserError(f"model.loss.{name}_weight is {weight}; it must be 0 or more")
        if self.perceptual_weight and not self.perceptual_file:
            raise UserError(
                f"model.loss.perceptual_weight is {self.perceptual_weight}, but perceptual_file is null; name the "
                "VGG16 weights, or set the weight to 0"
            )
        if self.entropy_temperature <= 0:
            raise UserError(f"model.loss.entropy_temperature is {self.entropy_temperature}; it must be above 0")

    def terms(
        self,
        images: Tensor,
        result: Reconstruction,
        codebook_VC: Tensor,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> LossTerms:
        """All terms of a batch.

        Args:
            images: float32 (B, 3, H, W) in [-1, 1].
            result: what the tokenizer made of them.
            codebook_VC: unit vectors with gradient.
            perceptual: gives one distance an image, (B,); needed for a perceptual weight above 0.
        """
        made, quantized = result.images_BCHW.float(), result.quantized
        distance = F.l1_loss if self.reconstruction == "l1" else F.mse_loss
        each = {"reconstruction": distance(made, images)}
        if self.perceptual_weight:
            each["perceptual"] = perceptual(made, images).mean()
        pixels = sum(getattr(self, f"{name}_weight") * value for name, value in each.items())
        each |= {"codebook": quantized.codebook_loss, "commitment": quantized.commitment_loss}
        if self.entropy_weight:
            each["entropy"] = entropy_loss(quantized.latent_BCHW, codebook_VC, self.entropy_temperature)
        loss = sum(getattr(self, f"{name}_weight") * value for name, value in each.items())
        return LossTerms(pixels, loss, each)
