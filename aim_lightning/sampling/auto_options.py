"""Replace `auto` by the values for a device, which records then contain."""

from collections.abc import Callable
from dataclasses import replace

import torch

from aim_lightning.models import AiM
from aim_lightning.sampling.fast import bytes_needed, kept_bytes, obstacle, release_decoders
from aim_lightning.sampling.memory import fitting_batch, free_bytes, too_large
from aim_lightning.sampling.options import SamplingOptions
from aim_lightning.sampling.plain_decoder import state_bytes
from aim_lightning.utils.errors import UserError

# `batch_size: auto` is constant on a CPU. On a GPU it is a power of two, so that small differences of free memory give
# the same number, and not larger than what keeps a GPU busy.
AUTO_ON_CPU, AUTO_AT_MOST = 64, 256


def resolve(options: SamplingOptions, model: AiM, pixel_bytes: Callable[[], int] = int) -> SamplingOptions:
    """Return the options without `auto`, for the network's device.

    Args:
        options: as configured.
        model: the network, on the device where it will sample.
        pixel_bytes: returns the bytes per image of decoding to pixels; called on a GPU only.

    Raises:
        UserError: not even one image fits into the GPU's free memory, or the fast decoder cannot be used.
    """
    check_decoder(options, model)
    device = model.lm_head.weight.device
    options = replace(options, precision=resolve_precision(options, model))
    if options.batch_size != "auto":
        return options
    if device.type != "cuda":
        return replace(options, batch_size=AUTO_ON_CPU)
    needed = image_bytes(model, options) + pixel_bytes()
    if options.decoder == "plain":
        release_decoders(model)  # the plain decoder does not use them
    # Kept decoders are released when a new one needs their memory: the result does not depend on earlier calls.
    free = free_bytes(device) + kept_bytes(model) - weight_bytes(model, options)
    return replace(options, batch_size=auto_batch(free, needed))


def check_decoder(options: SamplingOptions, model: AiM) -> None:
    """Raise a UserError where the fast decoder is configured and cannot take the network or a filter."""
    if options.decoder == "fast":
        reason = obstacle(model.config, model.lm_head.weight.device) or options.filters().fast_obstacle()
        if reason:
            raise UserError(f"the fast decoder cannot be used: {reason}")


def auto_batch(free: int, image_bytes: int) -> int:
    """Return the largest power of two, at most AUTO_AT_MOST, that fits into the free bytes.

    Raises:
        UserError: not even one image fits.
    """
    fits = min(AUTO_AT_MOST, fitting_batch(free, image_bytes))
    if fits < 1:
        raise too_large(1, 0, image_bytes, free)
    return 1 << (fits.bit_length() - 1)


def resolve_precision(options: SamplingOptions, model: AiM) -> str:
    """Return the type in which codes are sampled; the plain decoder keeps the network's own."""
    weight = model.lm_head.weight
    if options.decoder == "plain":
        return str(weight.dtype).removeprefix("torch.")
    if options.precision == "auto":
        return "bfloat16" if weight.is_cuda else "float32"
    return options.precision


def image_bytes(model: AiM, options: SamplingOptions) -> int:
    """Return the bytes of one image's decoding state; the options are resolved."""
    guided = any(scale != 1 for scale in options.scales(model.config.num_tokens))
    if options.decoder == "plain":
        return state_bytes(model.config, guided)
    return bytes_needed(model.config, 1, guided, getattr(torch, options.precision))


def weight_bytes(model: AiM, options: SamplingOptions) -> int:
    """Return the bytes of the fast decoder's copy of the weights."""
    count = sum(parameter.numel() for parameter in model.parameters())
    return 0 if options.decoder == "plain" else count * getattr(torch, options.precision).itemsize
