"""The two sides of the adversarial game, on logits (above 0 = taken for real), and the weight between the losses."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GanLoss = Literal["hinge", "non_saturating", "vanilla"]
LARGEST_WEIGHT = 1e4


def generator_loss(kind: GanLoss, fake: Tensor) -> Tensor:
    """What the tokenizer minimises: low when its reconstructions are taken for real. Scalar.

    ``non_saturating``: cross-entropy of `fake` against "real" (arXiv 1406.2661, section 3; the published tokenizer
    code hands target and logits over in the wrong order). Otherwise the mean logit, negated (as in VQGAN).
    """
    return F.softplus(-fake).mean() if kind == "non_saturating" else -fake.mean()


def discriminator_loss(kind: GanLoss, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises: low when it tells the two apart. Scalar, the mean over both sides.

    ``hinge``: no gradient from logits beyond 1 and -1 (arXiv 1705.02894). Otherwise the cross-entropy of `real`
    against "real" and `fake` against "fake": `vanilla` and `non_saturating` differ for the generator alone.
    """
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(
    pixels: Tensor,
    adversarial: Tensor,
    last_layer: Tensor,
    average: Callable[[Tensor], Tensor],
    scale: float = 1.0,
) -> Tensor:
    """Ratio of the gradients' norms at the decoder's last layer (VQGAN, arXiv 2012.09841, equation 7).

    Args:
        pixels: weighted reconstruction and perceptual loss.
        adversarial: the generator's loss, unweighted.
        last_layer: weight of the decoder's last layer.
        average: mean over all processes, so that the weight is the same on each.
        scale: of the loss in fp16, whose small gradients would vanish without it.

    Returns:
        Scalar between 0 and 1e4, without gradient; NaN where a gradient overflowed.
    """
    grads = [torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0] for loss in (pixels, adversarial)]
    ours, theirs = average(torch.stack(grads).float() / scale).flatten(1).norm(dim=1)
    return (ours / (theirs + 1e-4)).clamp(0, LARGEST_WEIGHT).detach()
