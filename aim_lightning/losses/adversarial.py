"""Adversarial losses of both networks, on logits (positive = real), and the adaptive weight between losses."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GanLoss = Literal["hinge", "non_saturating", "vanilla"]
LARGEST_WEIGHT = 1e4


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
    grads = [torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0] for loss in (pixels, adversarial)]
    pixel_norm, adversarial_norm = average(torch.stack(grads).float() / scale).flatten(1).norm(dim=1)
    return (pixel_norm / (adversarial_norm + 1e-4)).clamp(0, LARGEST_WEIGHT).detach()
