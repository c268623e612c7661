"""Sample codes for labels: check the options, choose the decoder, derive the random numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aim_lightning.models import AutoregressiveNetwork
from aim_lightning.sampling.fast import decoder_for, release_decoders
from aim_lightning.sampling.fast.cache import fitting_batch, free_bytes, too_large
from aim_lightning.sampling.options import (
    PIPELINE_OPTIONS,
    SamplingOptions,
    image_bytes,
    resolve,
    with_sampling_options,
)
from aim_lightning.sampling.plain_decoder import run_plain
from aim_lightning.utils.errors import UserError


@torch.no_grad()
@partial(with_sampling_options, without=PIPELINE_OPTIONS)
def generate(
    model: AutoregressiveNetwork,
    labels_B: Tensor,
    *,
    indices_B: Tensor | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    pixel_bytes: int = 0,
    **options: Any,
) -> Tensor:
    """Sample one image's codes for each label.

    Args:
        model: the network, in evaluation mode (dropout would act otherwise).
        labels_B: int64 classes, 0 to num_classes (num_classes = the null class).
        cfg_scale: guidance on logits; 1 = none.
        temperature: divides the guided logits; 1e-6 or more.
        top_k: codes kept per step; 0 = all, 1 = argmax.
        top_p: probability kept per step; 1 = all.
        seed: with indices_B it fixes every choice: image i depends on (seed, indices_B[i]) and its label only.
        indices_B: number of each image in the complete set; 0 to B - 1 by default.
        position_offset: 1 reproduces the published decoder, which gives code i the position i + 1.
        cfg_schedule: guidance over the sequence, with cfg_power and cfg_interval: see `sampling.guidance`.
        cfg_power: exponent of the schedule ``power``.
        cfg_interval: start and end of the schedule ``interval``, shares of the sequence.
        decoder: ``plain`` (the network's own step), ``fast`` (static memory, one captured graph on a GPU:
            `aim_lightning.sampling.fast`), or ``auto``: fast on NVIDIA GPUs that can run it, plain elsewhere.
        precision: of the fast decoder's weights and stored inputs; auto is bfloat16 on a GPU, float32 on a CPU. The
            plain decoder keeps the network's type.
        on_step: called after each step with (step, codes so far (B, step + 1)).
        pixel_bytes: GPU memory per image that the caller needs at the same time, for pixels.
        **options: further fields of `aim_lightning.sampling.filters.Filters`.

    Returns:
        codes_BL, int64, L = num_tokens.

    Raises:
        UserError: an option or a label out of range, logits that are not finite, or more images than fit into the
            GPU's memory.
    """
    if unexpected := options.keys() & set(PIPELINE_OPTIONS):
        raise TypeError(f"generate() takes no {', '.join(sorted(unexpected))}; AiMPipeline.generate does")
    options, labels_B = resolve(SamplingOptions.named(**options), model), torch.as_tensor(labels_B)
    _check(model, labels_B)
    count, device, num_tokens = len(labels_B), model.lm_head.weight.device, model.config.num_tokens
    if not count:
        return torch.zeros(0, num_tokens, dtype=torch.int64, device=device)
    indices_B = torch.arange(count) if indices_B is None else indices_B
    settings = {"filters": options.filters(), "position_offset": options.position_offset, "on_step": on_step}
    settings |= {"seed": options.seed, "scales": options.scales(num_tokens)}
    try:
        if options.decoder == "plain":
            return run_plain(model, labels_B.to(device), indices_B.to(device), **settings)
        dtype = getattr(torch, options.precision)
        decoder = decoder_for(model, count, options.is_guided(num_tokens), dtype, pixel_bytes)
        return decoder.run(model, labels_B, indices_B, **settings)
    except torch.OutOfMemoryError:
        decoder = None  # the failed attempt's tensors are free only after this block
    raise out_of_memory(model, count, image_bytes(model, options) + pixel_bytes)


def out_of_memory(model: AutoregressiveNetwork, images: int, image_bytes: int) -> UserError:
    """Return the error for a batch that did not fit, and release the memory of the model's decoders."""
    release_decoders(model)
    free = free_bytes(model.lm_head.weight.device)
    # At most half of what failed: free memory is only an estimate of what fits.
    return too_large(images, min(fitting_batch(free, image_bytes), images // 2), images * image_bytes, free)


def _check(model: AutoregressiveNetwork, labels_B: Tensor) -> None:
    if model.training:
        raise UserError("sampling needs the network in evaluation mode: call model.eval() first")
    if labels_B.dim() != 1 or labels_B.dtype != torch.int64:
        raise UserError(f"labels are {tuple(labels_B.shape)} of {labels_B.dtype}; give int64 labels (B,)")
    if labels_B.numel() and not 0 <= int(labels_B.min()) <= int(labels_B.max()) <= model.null_class:
        raise UserError(f"labels must be 0 to {model.null_class} ({model.null_class} = no class)")
