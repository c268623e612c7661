"""Sampling options as one value, for configuration files and records, and the values of `auto` for a device."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from inspect import Parameter, signature
from typing import Any, Literal

import torch
from torch import nn

from aim_lightning.models import AiMConfig, AutoregressiveNetwork
from aim_lightning.sampling.fast import bytes_needed, kept_bytes, obstacle, release_decoders
from aim_lightning.sampling.fast.cache import fitting_batch, free_bytes, too_large, weight_bytes
from aim_lightning.sampling.filters import Filters
from aim_lightning.sampling.guidance import Schedule, guidance_scales
from aim_lightning.sampling.plain_decoder import state_bytes
from aim_lightning.utils.errors import UserError, suggest
from aim_lightning.utils.logging import log_once
from aim_lightning.utils.ranges import Range, check_arguments

# Options of batches and pixels, which `generate` does not take: it samples codes.
PIPELINE_OPTIONS = ("batch_size", "pixel_precision")
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
        decoder: ``plain``, ``fast``, or ``auto`` (fast on NVIDIA GPUs that can run it; docs/performance.md).
        precision: of the fast decoder: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 on a GPU).
            The plain decoder keeps the network's own, which may also be ``float16`` or ``float64``.
        pixel_precision: in which the tokenizer turns codes into pixels; ``tf32`` needs an NVIDIA GPU. ``auto`` is
            bfloat16 on a GPU, and float32 on a CPU and for scores.

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
    decoder: Literal["auto", "plain", "fast"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    pixel_precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"

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

    def for_scores(self) -> "SamplingOptions":
        """Return the options with float32 pixels in place of `auto`, so that values stay comparable."""
        return replace(self, pixel_precision="float32") if self.pixel_precision == "auto" else self

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


def resolve(
    options: SamplingOptions, model: AutoregressiveNetwork, pixel_bytes: Callable[[], int] = int
) -> SamplingOptions:
    """Return the options without `auto`, for the network's device; those of pixels stay as they are.

    Args:
        options: as configured.
        model: the network, on the device where it will sample.
        pixel_bytes: returns the bytes per image of decoding to pixels; called on a GPU only.

    Raises:
        UserError: not even one image fits into the GPU's free memory, the fast decoder cannot be used, or the network
            has no published decoder, whose positions are configured.
    """
    device = model.lm_head.weight.device
    if options.position_offset and not isinstance(model.config, AiMConfig):
        raise UserError(f"sampling.position_offset is 1, but a {type(model).__name__} has no published decoder; use 0")
    options = _with_decoder(options, model)
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


def _with_decoder(options: SamplingOptions, model: AutoregressiveNetwork) -> SamplingOptions:
    """Return the options with the decoder and the type in which it samples; log once what `auto` took on a GPU.

    Raises:
        UserError: the fast decoder is configured and cannot take the network or an option.
    """
    weight, decoder = model.lm_head.weight, options.decoder
    reason = None if decoder == "plain" else _fast_obstacle(options, model)
    if decoder == "fast" and reason:
        raise UserError(f"the fast decoder cannot be used: {reason}")
    if decoder == "auto":
        reason = reason or _type_obstacle(options, weight)
        decoder = "fast" if weight.is_cuda and reason is None else "plain"
    precision = options.precision
    if decoder == "plain":  # it keeps the network's own type
        precision = _name(weight.dtype)
    elif precision == "auto":
        precision = "bfloat16" if weight.is_cuda else "float32"
    if options.decoder == "auto" and weight.is_cuda:
        why = f"the fast decoder cannot be used: {reason}" if reason else "the network is on an NVIDIA GPU"
        log_once(f"sampling.decoder auto took {decoder}, in {precision}: {why}")
    return replace(options, decoder=decoder, precision=precision)


def _fast_obstacle(options: SamplingOptions, model: AutoregressiveNetwork) -> str | None:
    """Return why the fast decoder cannot sample from this network with these options; None when it can."""
    if not isinstance(model.config, AiMConfig):
        return f"it supports AiM only, not {type(model).__name__}"
    if options.precision in ("float16", "float64"):
        return f"it has no {options.precision}"
    if any(isinstance(module, nn.Dropout) and module.training and module.p for module in model.modules()):
        return "it has no dropout, which is in training mode"
    return obstacle(model.config, model.lm_head.weight.device) or options.filters().fast_obstacle()


def _type_obstacle(options: SamplingOptions, weight: torch.Tensor) -> str | None:
    """Return the type that autocast or the weights set, if the fast decoder lacks it."""
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if options.precision != "auto" or dtype not in (torch.float16, torch.float64):
        return None
    return f"it has no {_name(dtype)}, the type of autocast or of the weights"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def image_bytes(model: AutoregressiveNetwork, options: SamplingOptions) -> int:
    """Return the bytes of one image's decoding state; the options are resolved."""
    guided = options.is_guided(model.config.num_tokens)
    if options.decoder == "plain":
        return state_bytes(model, guided)
    return bytes_needed(model.config, 1, guided, getattr(torch, options.precision))
