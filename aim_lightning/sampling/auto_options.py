"""What `auto` stands for on a device: the values that a record names."""

from collections.abc import Callable
from dataclasses import replace

import torch

from aim_lightning.models import AiM
from aim_lightning.sampling.fast import bytes_needed, kept_bytes, obstacle, release_decoders
from aim_lightning.sampling.guidance import guidance_scales
from aim_lightning.sampling.memory import fitting_batch, free_bytes, too_large
from aim_lightning.sampling.options import SamplingOptions
from aim_lightning.sampling.plain_decoder import state_bytes
from aim_lightning.utils.errors import UserError

# `batch_size: auto`: always so many on a CPU; on a GPU a power of two, so that a little more or less free memory gives
# the same number, and no more than what keeps a GPU busy.
AUTO_ON_CPU, AUTO_AT_MOST = 64, 256


def resolve(options: SamplingOptions, model: AiM, pixel_bytes: Callable[[], int] = int) -> SamplingOptions:
    """The same options without `auto`, for the network's device.

    Args:
        options: as configured.
        model: the network, where it will draw.
        pixel_bytes: gives the bytes an image that decoding to pixels takes; asked on a GPU alone.

    Raises:
        UserError: not even one image fits into the GPU's free memory, or the fast decoder cannot take the network.
    """
    takes_fast(options.decoder, model)
    device = model.lm_head.weight.device
    options = replace(options, precision=resolve_precision(options.decoder, options.precision, model))
    if options.batch_size != "auto":
        return options
    if device.type != "cuda":
        return replace(options, batch_size=AUTO_ON_CPU)
    each = image_bytes(model, options.decoder, options.precision, _guided(options, model)) + pixel_bytes()
    if options.decoder == "plain":
        release_decoders(model)  # of no use to it
    # Kept decoders go when a new one needs their memory: the number does not depend on what was drawn before.
    free = free_bytes(device) + kept_bytes(model) - weight_bytes(model, options.decoder, options.precision)
    return replace(options, batch_size=auto_batch(free, each))


def takes_fast(decoder: str, model: AiM) -> bool:
    """Whether it is the fast decoder. Raises UserError for an unknown one, or where the fast one cannot be used."""
    if decoder not in ("plain", "fast"):
        raise UserError(f"decoder is {decoder!r}; use plain or fast")
    reason = obstacle(model.config, model.lm_head.weight.device)
    if reason and decoder == "fast":
        raise UserError(f"the fast decoder cannot be used: {reason}")
    return decoder == "fast"


def auto_batch(free: int, image_bytes: int) -> int:
    """The power of two, at most AUTO_AT_MOST, that fits into so many free bytes.

    Raises:
        UserError: not even one image fits.
    """
    fits = min(AUTO_AT_MOST, fitting_batch(free, image_bytes))
    if fits < 1:
        raise too_large(1, 0, image_bytes, free)
    return 1 << (fits.bit_length() - 1)


def resolve_precision(decoder: str, precision: str, model: AiM) -> str:
    """The type in which codes are drawn: float32 or bfloat16; the plain decoder keeps the network's own."""
    weight = model.lm_head.weight
    if decoder == "plain":
        return str(weight.dtype).removeprefix("torch.")
    if precision == "auto":
        return "bfloat16" if weight.is_cuda else "float32"
    return precision


def image_bytes(model: AiM, decoder: str, precision: str, guided: bool) -> int:
    """Bytes of one image's decoding state; `precision` is resolved."""
    if decoder == "plain":
        return state_bytes(model.config, guided)
    return bytes_needed(model.config, 1, guided, getattr(torch, precision))


def weight_bytes(model: AiM, decoder: str, precision: str) -> int:
    """Bytes of the fast decoder's own copy of the weights."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return 0 if decoder == "plain" else count * getattr(torch, precision).itemsize


def _guided(options: SamplingOptions, model: AiM) -> bool:
    values = (options.cfg_scale, options.cfg_schedule, options.cfg_power, options.cfg_interval)
    return any(scale != 1 for scale in guidance_scales(model.config.num_tokens, *values))
