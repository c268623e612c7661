"""Schedules of classifier-free guidance: its scale at each step of the sequence."""

import math
from typing import Literal

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range, check_arguments

Schedule = Literal["constant", "linear", "cosine", "power", "interval"]


def guidance_scales(
    num_tokens: int,
    cfg_scale: float,
    cfg_schedule: Schedule = "constant",
    cfg_power: float = 1.0,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
) -> list[float]:
    """Return the guidance scale of each step, scales_L; 1 = no guidance at that step.

    With t = step / (num_tokens - 1), from 0 at the first code to 1 at the last:

    - ``constant``: cfg_scale
    - ``linear``: 1 + (cfg_scale - 1) t
    - ``cosine``: 1 + (cfg_scale - 1) (1 - cos(pi t)) / 2
    - ``power``: 1 + (cfg_scale - 1) (1 - cos(pi t^cfg_power)) / 2, the power-cosine of MDT (arXiv 2303.14389)
    - ``interval``: cfg_scale where cfg_interval[0] <= t <= cfg_interval[1], else 1 (after arXiv 2404.07724)

    Args:
        num_tokens: codes per image.
        cfg_scale: the strongest guidance; 1 = none anywhere.
        cfg_schedule: which of the curves.
        cfg_power: exponent of ``power``; above 0, 1 is ``cosine``.
        cfg_interval: start and end for ``interval``, shares of the sequence from 0 to 1.

    Raises:
        UserError: a value out of range.
    """
    ranges = {"cfg_scale": Range(note=" (1 = no guidance)"), "cfg_power": Range(above=True, note=" (1 = cosine)")}
    check_arguments("sampling: ", guidance_scales, locals(), **ranges, cfg_interval=Range(0, 1))
    if cfg_interval[0] > cfg_interval[1]:
        raise UserError(f"sampling: cfg_interval is {list(cfg_interval)}; it must be [start, end] with start <= end")
    curve = {
        "constant": lambda t: 1.0,
        "linear": lambda t: t,
        "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
        "power": lambda t: (1 - math.cos(math.pi * t**cfg_power)) / 2,
        "interval": lambda t: float(cfg_interval[0] <= t <= cfg_interval[1]),
    }[cfg_schedule]
    # One code alone has t = 0.
    shares = (curve(step / max(1, num_tokens - 1)) for step in range(num_tokens))
    # A constant schedule must be cfg_scale to the bit: 1 + (cfg_scale - 1) would round.
    return [float(cfg_scale) if share == 1 else 1.0 + (cfg_scale - 1) * share for share in shares]
