"""The sampling loop."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from aim_lightning.models import AiM
from aim_lightning.sampling.auto_options import image_bytes, resolve_precision, takes_fast
from aim_lightning.sampling.fast import decoder_for, release_decoders
from aim_lightning.sampling.filters import COLDEST, choose, diverged, refuse_diverged
from aim_lightning.sampling.guidance import Schedule, guidance_scales
from aim_lightning.sampling.memory import fitting_batch, free_bytes, too_large
from aim_lightning.sampling.plain_decoder import PlainDecoder
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.random import hash_uniform


@torch.no_grad()
def generate(
    model: AiM,
    labels_B: Tensor,
    *,
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    indices_B: Tensor | None = None,
    position_offset: int = 0,
    cfg_schedule: Schedule = "constant",
    cfg_power: float = 1.0,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    decoder: Literal["plain", "fast"] = "plain",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    on_step: Callable[[int, Tensor], None] | None = None,
    pixel_bytes: int = 0,
) -> Tensor:
    """Draw one image's codes for each label.

    Args:
        model: the network, in evaluation mode (dropout would act otherwise).
        labels_B: int64 classes, 0 to num_classes (num_classes = the null class).
        cfg_scale: guidance on logits; 1 = none.
        temperature: divides the guided logits; 1e-6 or more.
        top_k: keep so many codes a step; 0 = all, 1 = argmax.
        top_p: keep the codes that make up this probability; 1 = all.
        seed: with indices_B it fixes every draw: image i depends on (seed, indices_B[i]) and its label alone.
        indices_B: number of each image in the whole set; 0 to B - 1 by default.
        position_offset: 1 reproduces the published decoder, which gives code i the position i + 1.
        cfg_schedule: guidance over the sequence, with cfg_power and cfg_interval: see `sampling.guidance`.
        cfg_power: exponent of the schedule ``power``.
        cfg_interval: begin and end of the schedule ``interval``, shares of the sequence.
        decoder: ``plain`` (the network's own step), or ``fast`` (static memory, one captured graph on a GPU:
            `aim_lightning.sampling.fast`).
        precision: of the fast decoder's weights and stored inputs; auto is bfloat16 on a GPU, float32 on a CPU. The
            plain decoder keeps the network's type.
        on_step: called after each step with (step, codes so far (B, step + 1)).
        pixel_bytes: GPU memory an image that the caller will need beside it, for pixels.

    Returns:
        codes_BL, int64, L = num_tokens.

    Raises:
        UserError: an option or a label out of range, logits that are not finite, or more images than the GPU's memory
            takes.
    """
    _check(model, labels_B, temperature, top_k, top_p, position_offset)
    scales_L = guidance_scales(model.config.num_tokens, cfg_scale, cfg_schedule, cfg_power, cfg_interval)
    fast, precision = takes_fast(decoder, model), resolve_precision(decoder, precision, model)
    guided = any(scale != 1 for scale in scales_L)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "position_offset": position_offset}
    if not len(labels_B):
        return torch.zeros(0, model.config.num_tokens, dtype=torch.int64, device=model.lm_head.weight.device)
    try:
        labels_B, uniform_BL = _inputs(model, labels_B, indices_B, seed)
        draw = _plain
        if fast:
            draw = decoder_for(model, len(labels_B), guided, getattr(torch, precision), pixel_bytes).run
        return draw(model, labels_B, uniform_BL, scales=scales_L, on_step=on_step, **options)
    except torch.OutOfMemoryError:
        draw = None  # the failed attempt's tensors are free only after this block
    raise out_of_memory(model, len(labels_B), image_bytes(model, decoder, precision, guided) + pixel_bytes)


def _inputs(model: AiM, labels_B: Tensor, indices_B: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """labels_B and uniform_BL, the random number of each draw, on the network's device."""
    device = model.lm_head.weight.device
    indices_B = torch.arange(len(labels_B)) if indices_B is None else indices_B
    steps_L = torch.arange(model.config.num_tokens, device=device)
    return labels_B.to(device), hash_uniform("sample", seed, indices_B.to(device)[:, None], steps_L)


def out_of_memory(model: AiM, images: int, image_bytes: int) -> UserError:
    """What to raise after so many images did not fit, a UserError; the model's decoders give their memory back."""
    release_decoders(model)
    free = free_bytes(model.lm_head.weight.device)
    return too_large(images, min(fitting_batch(free, image_bytes), images // 2), images * image_bytes, free)


def _plain(model, labels_B, uniform_BL, *, scales, position_offset, on_step, **filters) -> Tensor:
    """The loop over the network's own steps."""
    plain = PlainDecoder(model, labels_B, scales, position_offset)
    codes_BL = torch.zeros(uniform_BL.shape, dtype=torch.int64, device=uniform_BL.device)
    bad = torch.zeros((), dtype=torch.bool, device=uniform_BL.device)
    for step in range(model.config.num_tokens):
        logits_BV = plain.logits(codes_BL[:, step - 1] if step else None, step)
        bad |= diverged(logits_BV)
        codes_BL[:, step] = choose(logits_BV, uniform_BL[:, step], **filters)
        if on_step is not None:
            on_step(step, codes_BL[:, : step + 1])
    refuse_diverged(bad)
    return codes_BL


def _check(model, labels_B, temperature, top_k, top_p, position_offset) -> None:
    if model.training:
        raise UserError("sampling needs the network in evaluation mode: call model.eval() first")
    if not temperature >= COLDEST:
        raise UserError(f"temperature is {temperature}; it must be {COLDEST} or more (top_k=1 is argmax)")
    if top_k < 0:
        raise UserError(f"top_k is {top_k}; it must be 0 (all codes) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be in (0, 1]")
    if position_offset not in (0, 1):
        raise UserError(f"position_offset is {position_offset}; it must be 0, or 1 for the published decoder")
    if labels_B.numel() and not 0 <= int(labels_B.min()) <= int(labels_B.max()) <= model.null_class:
        raise UserError(f"labels must be 0 to {model.null_class} ({model.null_class} = no class)")
