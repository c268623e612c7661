"""Sampling options as one value, for configuration files and records, and the values of `auto` for a device."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from inspect import Parameter, signature
from typing import Any, Literal

import torch

from aim_lightning.models import AiM
from aim_lightning.sampling.fast import bytes_needed, kept_bytes, obstacle, release_decoders
from aim_lightning.sampling.fast.cache import fitting_batch, free_bytes, too_large, weight_bytes
from aim_lightning.sampling.filters import Filters
from aim_lightning.sampling.guidance import Schedule, guidance_scales
from aim_lightning.sampling.plain_decoder import state_bytes
from aim_lightning.utils.errors import UserError, suggest
from aim_lightning.utils.ranges import Range, check_arguments

# Options of batches and pixels, which `generate` does not take: it samples codes.
PIPELINE_OPTIONS = ("batch_size", "pixel_precision", "pixel_compile")
# `batch_size: auto` is constant on a CPU. On a GPU it is a power of two, so that small differences of free memory give
# the same number, and not larger than what keeps a GPU busy.
AUTO_ON_CPU, AUTO_AT_MOST = 64, 256


@dataclass(frozen=True)
class SamplingOptions:
    """Set how images are generated; see `aim_lightning.sampling.generate`.

    Args:
        cfg_scale: guidance; 1 = none.
        temperature: 1e-6 or more; top_k 1 is argmax.
        top_k: codes kept per step; 0 = all, 1 = argmax.
        top_p: probability kept per step; 1 = all.
        seed: of the images' random streams, 0 to 2**63 - 1.
        batch_size: images sampled at a time on one device; a last, smaller block is filled up to this size. ``auto``
            is a power of two, 256 at most, that fits into a GPU's free memory, and 64 on a CPU.
        position_offset: 1 = positions of the published decoder.
        cfg_schedule: guidance over the sequence (`aim_lightning.sampling.guidance`).
        cfg_power: exponent of the schedule ``power``.
        cfg_interval: start and end of the schedule ``interval``, shares of the sequence, 0 to 1.
        decoder: ``plain``, or ``fast`` (docs/performance.md).
        precision: of the fast decoder: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 on a GPU).
            The plain decoder keeps the network's own, which may also be ``float16`` or ``float64``.
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
    cfg_schedule: Schedule = "constant"
    cfg_power: float = 1.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    decoder: Literal["plain", "fast"] = "plain"
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    pixel_precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    pixel_compile: bool = False

    def __post_init__(self) -> None:
        ranges = {"batch_size": Range(1), "seed": Range(0, 2**63 - 1)}
        ranges["position_offset"] = Range(0, 1, note=" (1 = the published decoder)")
        check_arguments("sampling: ", SamplingOptions, vars(self), **ranges)
        # These check the ranges of filters and guidance.
        self.filters()
        self.scales(1)
        # 2, 2.0 and NumPy's 2 are one value: their results are recorded under one name.
        for field in fields(self):
            if field.type in (int, float):
                object.__setattr__(self, field.name, field.type(getattr(self, field.name)))
        object.__setattr__(self, "cfg_interval", tuple(map(float, self.cfg_interval)))

    @classmethod
    def named(cls, **options: Any) -> "SamplingOptions":
        """Build the options, with a suggestion for an unknown name.

        Args:
            **options: fields by name.

        Raises:
            UserError: an unknown name, or as the constructor.
        """
        names = [field.name for field in fields(cls)]
        for name in options.keys() - names:
            raise UserError(f"generate has no option {name!r}{suggest(name, names) or '; use ' + ', '.join(names)}")
        return cls(**options)

    def filters(self) -> Filters:
        """Return the options of each random choice."""
        return Filters(**{field.name: getattr(self, field.name) for field in fields(Filters)})

    def scales(self, num_tokens: int) -> list[float]:
        """Return the guidance scale of each step (see `guidance_scales`)."""
        return guidance_scales(num_tokens, self.cfg_scale, self.cfg_schedule, self.cfg_power, self.cfg_interval)

    def is_guided(self, num_tokens: int) -> bool:
        """Return True if any of the steps has guidance, so that the null-class branch runs."""
        return any(scale != 1 for scale in self.scales(num_tokens))

    def options(self) -> dict:
        """Return the keyword arguments of `AiMPipeline.generate`."""
        return asdict(self)

    def code_options(self) -> dict:
        """Return the keyword arguments of `generate`: the options that determine the codes."""
        return {name: value for name, value in asdict(self).items() if name not in PIPELINE_OPTIONS}


def with_sampling_options(function: Callable, without: tuple[str, ...] = ()) -> Callable:
    """Show the fields of `SamplingOptions` instead of **options in a function's signature (help, tab completion).

    Args:
        function: takes them as **options.
        without: fields that it does not take.
    """
    original = signature(function)
    parameters = [parameter for parameter in original.parameters.values() if parameter.kind != Parameter.VAR_KEYWORD]
    for field in fields(SamplingOptions):
        if field.name not in {*original.parameters, *without}:
            values = {"default": field.default, "annotation": field.type}
            parameters.append(Parameter(field.name, Parameter.KEYWORD_ONLY, **values))
    function.__signature__ = original.replace(parameters=parameters)
    return function


def resolve(options: SamplingOptions, model: AiM, pixel_bytes: Callable[[], int] = int) -> SamplingOptions:
    """Return the options without `auto`, for the network's device.

    Args:
        options: as configured.
        model: the network, on the device where it will sample.
        pixel_bytes: returns the bytes per image of decoding to pixels; called on a GPU only.

    Raises:
        UserError: not even one image fits into the GPU's free memory, or the fast decoder cannot be used.
    """
    device = model.lm_head.weight.device
    options = replace(options, precision=_precision(options, model))
    if options.batch_size != "auto":
        return options
    if device.type != "cuda":
        return replace(options, batch_size=AUTO_ON_CPU)
    needed = image_bytes(model, options) + pixel_bytes()
    if options.decoder == "plain":
        release_decoders(model)  # the plain decoder does not use them
    weights = 0 if options.decoder == "plain" else weight_bytes(model, getattr(torch, options.precision))
    # Kept decoders are released when a new one needs their memory: the result does not depend on earlier calls.
    free = free_bytes(device) + kept_bytes(model) - weights
    return replace(options, batch_size=auto_batch(free, needed))


def auto_batch(free: int, image_bytes: int) -> int:
    """Return the largest power of two, at most AUTO_AT_MOST, that fits into the free bytes.

    Raises:
        UserError: not even one image fits.
    """
    fits = min(AUTO_AT_MOST, fitting_batch(free, image_bytes))
    if fits < 1:
        raise too_large(1, 0, image_bytes, free)
    return 1 << (fits.bit_length() - 1)


def _precision(options: SamplingOptions, model: AiM) -> str:
    """Return the type in which codes are sampled; the plain decoder keeps the network's own.

    Raises:
        UserError: the fast decoder is configured and cannot take the network or an option.
    """
    weight = model.lm_head.weight
    if options.decoder == "plain":
        return str(weight.dtype).removeprefix("torch.")
    reason = obstacle(model.config, weight.device) or options.filters().fast_obstacle()
    if not reason and options.precision in ("float16", "float64"):
        reason = f"it has no {options.precision}"
    if reason:
        raise UserError(f"the fast decoder cannot be used: {reason}")
    automatic = "bfloat16" if weight.is_cuda else "float32"
    return automatic if options.precision == "auto" else options.precision


def image_bytes(model: AiM, options: SamplingOptions) -> int:
    """Return the bytes of one image's decoding state; the options are resolved."""
    guided = options.is_guided(model.config.num_tokens)
    if options.decoder == "plain":
        return state_bytes(model.config, guided)
    return bytes_needed(model.config, 1, guided, getattr(torch, options.precision))
