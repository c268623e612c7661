"""Keep fast decoders from call to call, check where they can be used, and estimate how many images fit into memory."""

import importlib.util
import sys
from collections import OrderedDict
from weakref import WeakKeyDictionary

import torch

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.models.aim.backends import launcher_fault
from aim_lightning.sampling.fast.buffers import bytes_needed
from aim_lightning.sampling.fast.decoder import FastDecoder
from aim_lightning.utils.errors import UserError

# Decoders per model: one for the block of a long series and one other (a grid of images).
KEPT = 2
SHARE = 0.9  # of the free memory; the rest is headroom for allocations not modelled here
_decoders: WeakKeyDictionary[AiM, OrderedDict] = WeakKeyDictionary()


def obstacle(config: AiMConfig, device: torch.device) -> str | None:
    """Return why the fast decoder cannot take this network on this device; None when it can."""
    if config.d_intermediate:
        return "it has no MLP (d_intermediate)"
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip or importlib.util.find_spec("triton") is None:
        return f"it needs Triton on an NVIDIA GPU, or a CPU, not {device.type}"
    odd = [name for name in ("headdim", "d_state") if getattr(config, name) not in (16, 32, 64, 128, 256)]
    return f"its kernels need {odd[0]} to be a power of two from 16 to 256" if odd else launcher_fault(device)


def decoder_for(model: AiM, images: int, guided: bool, dtype: torch.dtype, pixel_bytes: int = 0) -> FastDecoder:
    """Return the decoder of this shape, built at the first call; a model's least recently used decoder is released.

    Args:
        model: the network.
        images: labels per call.
        guided: whether the null-class branch runs.
        dtype: type of weights and stored inputs.
        pixel_bytes: GPU memory per image that decoding to pixels needs at the same time.

    Raises:
        UserError: the GPU's free memory does not suffice; the message contains the batch that would fit.
    """
    device = model.lm_head.weight.device
    kept = _decoders.setdefault(model, OrderedDict())
    key = (images, guided, dtype, device, model.config)
    if key not in kept:
        while len(kept) >= KEPT:
            kept.popitem(last=False)
        _make_room(kept, model, images, guided, dtype, pixel_bytes)
        with torch.inference_mode(False):  # tensors created inside it could not be written to outside
            kept[key] = FastDecoder(model, images, guided, dtype)
    kept.move_to_end(key)
    return kept[key]


def release_decoders(model: AiM) -> None:
    """Release the memory of the model's decoders."""
    _decoders.pop(model, None)


def kept_bytes(model: AiM) -> int:
    """Return the device memory of the model's decoders, which is released when a new one needs it."""
    return sum(
        bytes_needed(config, images, guided, dtype) + weight_bytes(model, dtype)
        for images, guided, dtype, _, config in _decoders.get(model, ())
    )


def weight_bytes(model: AiM, dtype: torch.dtype) -> int:
    """Return the bytes of the decoder's copy of the weights."""
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def _make_room(kept: OrderedDict, model: AiM, images: int, guided: bool, dtype: torch.dtype, pixel_bytes: int) -> None:
    """Release the kept decoders where the new one does not fit next to them; raise where it does not fit alone."""
    image_bytes = bytes_needed(model.config, 1, guided, dtype) + pixel_bytes
    device, weights = model.lm_head.weight.device, weight_bytes(model, dtype)
    free = free_bytes(device) - weights
    if images > fitting_batch(free, image_bytes):
        kept.clear()
        free = free_bytes(device) - weights
    fits = fitting_batch(free, image_bytes)
    if images > fits:
        raise too_large(images, fits, images * image_bytes, free)


def free_bytes(device: torch.device) -> int:
    """Return a GPU's free memory with PyTorch's unused blocks included; other devices count as unlimited."""
    if device.type != "cuda":
        return sys.maxsize
    torch.cuda.empty_cache()  # mem_get_info counts PyTorch's cached blocks as used
    return torch.cuda.mem_get_info(device)[0]


def fitting_batch(free: int, image_bytes: int) -> int:
    """Return the number of images that fit into the free bytes, 0 or more."""
    return max(0, int(SHARE * free / image_bytes))


def too_large(images: int, fits: int, need: int, free: int) -> UserError:
    """Return the error for a batch of `images`, of which `fits` would fit; need and free in bytes."""
    advice = f"a batch of {fits} would fit (sampling.batch_size)" if fits else "not even one image would fit"
    memory = f"{need / 2**30:.1f} GiB of GPU memory, {max(0, free) / 2**30:.1f} GiB are free"
    return UserError(f"sampling {images} images at a time needs {memory}; {advice}")
