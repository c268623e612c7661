"""The losses of stage 1: the tokenizer's, and the adversarial ones on logits (positive = real)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aim_lightning.models.vq.model import Reconstruction
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments

ROWS_AT_A_TIME = 16384  # limits the scores in memory to 16k x V values
GanLoss = Literal["hinge", "non_saturating", "vanilla"]
LARGEST_WEIGHT = 1e4


@dataclass
class LossTerms:
    """Loss and terms of one batch, scalars.

    Args:
        pixels: weighted sum of reconstruction and perceptual distance.
        loss: weighted sum of all terms.
        each: unweighted terms by name.
    """

    pixels: Tensor
    loss: Tensor
    each: dict[str, Tensor]


@dataclass(frozen=True)
class TokenizerLoss:
    """Terms and weights of the loss; perceptual and entropy terms of weight 0 are not computed.

    Args:
        reconstruction: ``l1`` or ``l2`` between images in [-1, 1].
        reconstruction_weight: of that term.
        perceptual_weight: of LPIPS on VGG16 (arXiv 1801.03924); 0 needs no file.
        perceptual_file: torchvision's VGG16 weights (vgg16-397923af.pth); nothing is downloaded.
        codebook_weight: pulls codes to latents.
        commitment_weight: pulls latents to codes.
        entropy_weight: of the entropy term, which favours certain and evenly used codes.
        entropy_temperature: of the softmax over codes in that term.

    Raises:
        UserError: a number out of range, or a perceptual weight without a file.
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
        check_arguments("model.loss.", TokenizerLoss, vars(self), entropy_temperature=Range(above=True))
        if self.perceptual_weight and not self.perceptual_file:
            hint = "perceptual_file is null; name the VGG16 weights, or set the weight to 0"
            raise UserError(f"model.loss.perceptual_weight is {self.perceptual_weight}, but {hint}")

    def terms(
        self,
        images: Tensor,
        result: Reconstruction,
        codebook_VC: Tensor,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> LossTerms:
        """Compute all terms of a batch.

        Args:
            images: float32 (B, 3, H, W) in [-1, 1].
            result: output of the tokenizer.
            codebook_VC: unit vectors with gradient.
            perceptual: returns one distance per image, (B,); required if its weight is above 0.
        """
        reconstructions, quantized = result.images_BCHW.float(), result.quantized
        distance = F.l1_loss if self.reconstruction == "l1" else F.mse_loss
        each = {"reconstruction": distance(reconstructions, images)}
        if self.perceptual_weight:
            each["perceptual"] = perceptual(reconstructions, images).mean()
        # Summed before the codebook terms: the adaptive weight compares with pixels only.
        pixels = sum(getattr(self, f"{name}_weight") * value for name, value in each.items())
        each |= {"codebook": quantized.codebook_loss, "commitment": quantized.commitment_loss}
        if self.entropy_weight:
            each["entropy"] = entropy_loss(quantized.latent_BCHW, codebook_VC, self.entropy_temperature)
        loss = sum(getattr(self, f"{name}_weight") * value for name, value in each.items())
        return LossTerms(pixels, loss, each)


def entropy_loss(latent_BCHW: Tensor, codebook_VC: Tensor, temperature: float) -> Tensor:
    """Return the mean entropy of each position's code minus the entropy of the mean distribution, a scalar in nats.

    It is low if every position has a certain code and all codes are used equally (as in MAGVIT-v2, arXiv 2310.05737,
    equation 4, and the published tokenizer code).

    Args:
        latent_BCHW: unit vectors.
        codebook_VC: unit vectors.
        temperature: of the softmax over negative squared distances.
    """
    rows = latent_BCHW.movedim(1, -1).flatten(0, -2)
    parts = rows.split(ROWS_AT_A_TIME)
    # Checkpointing: the backward pass recomputes the scores of one part at a time instead of storing them all.
    sums = [checkpoint(_code_probabilities, part, codebook_VC, temperature, use_reentrant=False) for part in parts]
    mean_V, position_entropy = (torch.stack(values).sum(0) / len(rows) for values in zip(*sums, strict=True))
    return position_entropy + (mean_V * (mean_V + 1e-5).log()).sum()


def _code_probabilities(rows: Tensor, codebook_VC: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return sums over rows: of the probabilities (V,) and of their entropies."""
    with torch.autocast(rows.device.type, enabled=False):
        scores = 2 * rows.float() @ codebook_VC.float().T  # -|a - b|^2 = 2 ab - 2 for unit vectors
        logs = F.log_softmax(scores / temperature, dim=-1)
        probabilities = logs.exp()
        return probabilities.sum(0), -(probabilities * logs).sum()


def generator_loss(loss: GanLoss, fake: Tensor) -> Tensor:
    """Return the tokenizer's loss, a scalar that is low if reconstructions are classified as real.

    Args:
        loss: ``non_saturating`` for the cross-entropy of `fake` against "real" (arXiv 1406.2661, section 3; the
            published tokenizer code swaps target and logits). Otherwise the negative mean logit (as in VQGAN).
        fake: logits of reconstructions, any shape.
    """
    return F.softplus(-fake).mean() if loss == "non_saturating" else -fake.mean()


def discriminator_loss(loss: GanLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss, a scalar that is low if it separates images from reconstructions.

    Args:
        loss: ``hinge`` gives no gradient for logits beyond 1 and -1 (arXiv 1705.02894). Otherwise the cross-entropy
            of `real` against "real" and of `fake` against "fake".
        real: logits of images, any shape.
        fake: logits of reconstructions, any shape.
    """
    # Half of the sum, so that both losses have the scale of one cross-entropy.
    if loss == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(
    pixels: Tensor, adversarial: Tensor, last_layer: Tensor, average: Callable[[Tensor], Tensor], scale: float = 1.0
) -> Tensor:
    """Return the ratio of gradient norms at the decoder's last layer (VQGAN, arXiv 2012.09841, equation 7).

    Args:
        pixels: weighted reconstruction and perceptual loss.
        adversarial: the generator's loss, unweighted.
        last_layer: weight of the decoder's last layer.
        average: mean over all ranks, so that the weight is equal on each.
        scale: of the loss in fp16, in which small gradients would vanish without it.

    Returns:
        Scalar between 0 and 1e4, without gradient; NaN where a gradient overflowed.
    """
    # The graph is kept for the backward pass that follows.
    grads = [torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0] for loss in (pixels, adversarial)]
    pixel_norm, adversarial_norm = average(torch.stack(grads).float() / scale).flatten(1).norm(dim=1)
    return (pixel_norm / (adversarial_norm + 1e-4)).clamp(0, LARGEST_WEIGHT).detach()
