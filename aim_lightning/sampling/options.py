"""Sampling options as one value, for configuration files and records."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from inspect import Parameter, signature
from math import inf
from numbers import Real
from typing import Literal

from aim_lightning.sampling.filters import Filters, check_types
from aim_lightning.sampling.guidance import check_guidance, guidance_scales
from aim_lightning.utils.errors import UserError

# Options of batches and pixels, which `generate` does not take: it samples codes.
PIPELINE_OPTIONS = ("batch_size", "pixel_precision", "pixel_compile")


@dataclass(frozen=True)
class SamplingOptions:
    """Set how images are generated; see `aim_lightning.sampling.generate`.

    Args:
        cfg_scale: guidance; 1 = none.
        temperature: 1e-6 or more; top_k 1 is argmax.
        top_k: codes kept per step; 0 = all, 1 = argmax.
        top_p: probability kept per step; 1 = all.
        seed: of the images' random streams, 0 or more.
        batch_size: images sampled at a time on one device; a last, smaller block is filled up to this size. ``auto``
            is a power of two, 256 at most, that fits into a GPU's free memory, and 64 on a CPU.
        position_offset: 1 = positions of the published decoder.
        cfg_schedule: guidance over the sequence (`aim_lightning.sampling.guidance`).
        cfg_power: exponent of the schedule ``power``.
        cfg_interval: start and end of the schedule ``interval``, shares of the sequence, 0 to 1.
        decoder: ``plain``, or ``fast`` (docs/performance.md).
        precision: of the fast decoder: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 on a GPU).
        pixel_precision: in which the tokenizer turns codes into pixels; ``tf32`` needs an NVIDIA GPU.
        pixel_compile: fuse the tokenizer's decoder with torch.compile, a minute at the start.

    Raises:
        UserError: a value of another type or out of range.
    """

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int | Literal["auto"] = 256
    position_offset: int = 0
    # Written out: the early check of configurations follows no aliases.
    cfg_schedule: Literal["constant", "linear", "cosine", "power", "interval"] = "constant"
    cfg_power: float = 1.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    decoder: Literal["plain", "fast"] = "plain"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    pixel_precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    pixel_compile: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.seed < 0:
            raise UserError(f"sampling: seed is {self.seed}; it must be 0 or more")
        size, interval = self.batch_size, self.cfg_interval
        if size != "auto" and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise UserError(f"sampling: batch_size is {size!r}; it must be auto, or a whole number, at least 1")
        numbers = isinstance(interval, list | tuple) and all(isinstance(value, Real) for value in interval)
        if not numbers:
            raise UserError(f"sampling: cfg_interval is {interval!r}; it must be two numbers")
        check_guidance(self.cfg_scale, self.cfg_schedule, self.cfg_power, interval)
        if not self.cfg_scale < inf:
            raise UserError(f"sampling: cfg_scale is {self.cfg_scale}; it must be finite")
        if self.position_offset not in (0, 1):
            raise UserError(
                f"sampling: position_offset is {self.position_offset}; it must be 0, or 1 for the published decoder"
            )
        self.filters()  # checks their ranges
        # 2 and 2.0 are one value: results of both are recorded under one name.
        for field in fields(self):
            if field.type is float:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        object.__setattr__(self, "cfg_interval", tuple(map(float, interval)))

    def filters(self) -> Filters:
        """Return the options of each random choice."""
        return Filters(**{field.name: getattr(self, field.name) for field in fields(Filters)})

    def scales(self, num_tokens: int) -> list[float]:
        """Return the guidance scale of each step (see `guidance_scales`)."""
        return guidance_scales(num_tokens, self.cfg_scale, self.cfg_schedule, self.cfg_power, self.cfg_interval)

    def options(self) -> dict:
        """Return the keyword arguments of `AiMPipeline.generate`."""
        return asdict(self)

    def code_options(self) -> dict:
        """Return the keyword arguments of `generate`: the options that determine the codes."""
        return {name: value for name, value in asdict(self).items() if name not in PIPELINE_OPTIONS}


def with_sampling_options(function: Callable) -> Callable:
    """Show the fields of `SamplingOptions` instead of **options in a function's signature (help, tab completion)."""
    original = signature(function)
    named = [parameter for parameter in original.parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD]
    missing = [field for field in fields(SamplingOptions) if field.name not in original.parameters]
    options = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type) for field in missing
    ]
    function.__signature__ = original.replace(parameters=[*named, *options])
    return function
