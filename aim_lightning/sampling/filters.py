"""From logits to a code: guidance, temperature, top-k, top-p and the random choice.

To add a filter, write its function here, add a field to `Filters` with a range in `__post_init__`, and apply it in
`sample_codes`. Add the same field to `SamplingOptions` (options.py). Everything between passes filters through by name.
The fast decoder refuses a filter that is not in `FAST_FILTERS`; its kernels are in fast/kernels/sample_token.py.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments

COLDEST = 1e-6  # temperature: divided by less, logits would overflow
FAST_FILTERS = ("temperature", "top_k", "top_p")  # implemented by the kernels of the fast decoder


@dataclass(frozen=True)
class Filters:
    """Options of one random choice, applied in the order of `sample_codes`.

    Args:
        temperature: divides the guided logits; 1e-6 or more.
        top_k: codes kept per step; 0 = all, 1 = argmax.
        top_p: probability kept per step, above 0; 1 = all.

    Raises:
        UserError: a value of another type or out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        ranges = {"temperature": Range(COLDEST, note=" (top_k 1 is argmax)"), "top_p": Range(0, 1, above=True)}
        check_arguments("sampling: ", Filters, vars(self), **ranges)

    def fast_obstacle(self) -> str | None:
        """Return why the fast decoder cannot apply these filters; None when it can."""
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        missing = [name for name in changed if name not in FAST_FILTERS]
        return f"its kernels have no {missing[0]}; use decoder plain" if missing else None


def guide(cond_BV: Tensor, uncond_BV: Tensor, cfg_scale: float) -> Tensor:
    """Apply classifier-free guidance to logits: uncond + cfg_scale * (cond - uncond)."""
    return uncond_BV + cfg_scale * (cond_BV - uncond_BV)


def keep_top_k(logits_BV: Tensor, top_k: int) -> Tensor:
    """Set all but the top_k largest logits of a row to -inf; 0 keeps all. Ties at the threshold stay."""
    if top_k <= 0 or top_k >= logits_BV.shape[-1]:
        return logits_BV
    threshold_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < threshold_B1, float("-inf"))


def keep_top_p(logits_BV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of codes whose probability reaches top_p, at least one code; 1 keeps all."""
    if top_p >= 1:
        return logits_BV
    # Stable: of equal logits the lowest index comes first, on every device.
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probability_BV = sorted_BV.softmax(dim=-1)
    # The probability of the codes before this one: the code that crosses top_p stays.
    before_BV = probability_BV.cumsum(dim=-1) - probability_BV
    drop_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= top_p)
    return logits_BV.masked_fill(drop_BV, float("-inf"))


def sample_categorical(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Return one code per row by inverting the cumulative distribution at uniform_B in [0, 1); never one of -inf."""
    # float64: in float32 the cumulative sum over 16,384 codes would shift the later ones by their own probability.
    cumulative_BV = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
    # The total is 1 up to rounding: scaling u by it keeps the last code from taking the difference.
    target_B1 = (uniform_B.double() * cumulative_BV[:, -1])[:, None]
    codes_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)
    return codes_B.clamp(max=logits_BV.shape[-1] - 1)


def diverged(logits_BV: Tensor) -> Tensor:
    """Return a bool on the logits' device, without waiting for it: is any logit NaN or infinite."""
    return ~logits_BV.isfinite().all()


def refuse_diverged(seen: Tensor | bool) -> None:
    """Raise if any logits of a sequence were not finite. Called once per sequence, because it waits for the device.

    Raises:
        UserError: `seen` is true.
    """
    if seen:
        raise UserError("logits are not finite: the network's weights have diverged; take an earlier checkpoint")


def sample_codes(logits_BV: Tensor, uniform_B: Tensor, filters: Filters) -> Tensor:
    """Return one code per row: temperature, top-k, top-p, then a random choice.

    Args:
        logits_BV: guided logits.
        uniform_B: one random number in [0, 1) per row.
        filters: options; top_k = 1 is argmax (the lowest index among equals).
    """
    if filters.top_k == 1:
        return logits_BV.argmax(dim=-1)
    logits_BV = keep_top_k(logits_BV.float() / filters.temperature, filters.top_k)
    return sample_categorical(keep_top_p(logits_BV, filters.top_p), uniform_B)
