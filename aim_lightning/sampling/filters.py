"""From logits to a code: guidance, temperature, top-k, top-p and the draw itself."""

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError

COLDEST = 1e-6  # temperature: divided by less, logits would overflow


def guide(cond_BV: Tensor, uncond_BV: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance on logits: uncond + cfg_scale * (cond - uncond)."""
    return uncond_BV + cfg_scale * (cond_BV - uncond_BV)


def keep_top_k(logits_BV: Tensor, top_k: int) -> Tensor:
    """All but the top_k largest logits of a row to -inf; 0 keeps all. Ties at the threshold stay."""
    if top_k <= 0 or top_k >= logits_BV.shape[-1]:
        return logits_BV
    threshold_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < threshold_B1, float("-inf"))


def keep_top_p(logits_BV: Tensor, top_p: float) -> Tensor:
    """The smallest set of codes whose probability reaches top_p stays; at least one does; 1 keeps all."""
    if top_p >= 1:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probability_BV = sorted_BV.softmax(dim=-1)
    before_BV = probability_BV.cumsum(dim=-1) - probability_BV
    drop_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= top_p)
    return logits_BV.masked_fill(drop_BV, float("-inf"))


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """One code a row by inverting the cumulative distribution at uniform_B in [0, 1); -inf is never drawn."""
    cumulative_BV = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
    # The total is 1 up to rounding: scaling u by it keeps the last code from taking the difference.
    target_B1 = (uniform_B.double() * cumulative_BV[:, -1])[:, None]
    codes_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)
    return codes_B.clamp(max=logits_BV.shape[-1] - 1)


def diverged(logits_BV: Tensor) -> Tensor:
    """Whether any logit is NaN or infinite: a bool on the logits' device, for which nothing waits."""
    return ~logits_BV.isfinite().all()


def refuse_diverged(seen: Tensor | bool) -> None:
    """Once a sequence: what was drawn from logits that are not finite is no sample. Waits for the device.

    Raises:
        UserError: `seen` is true.
    """
    if seen:
        raise UserError("logits are not finite: the network's weights have diverged; take an earlier checkpoint")


def choose(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Temperature, top-k, top-p, draw; top_k = 1 is argmax (the lowest index among equals)."""
    if top_k == 1:
        return logits_BV.argmax(dim=-1)
    logits_BV = keep_top_k(logits_BV.float() / temperature, top_k)
    return draw(keep_top_p(logits_BV, top_p), uniform_B)
