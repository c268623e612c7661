"""Estimate how many images fit into a device's memory, and build the error for those that do not."""

import sys

import torch

from aim_lightning.utils.errors import UserError

SHARE = 0.9  # of the free memory; the rest is headroom for allocations not modelled here


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
    return UserError(
        f"sampling {images} images at a time needs {need / 2**30:.1f} GiB of GPU memory, "
        f"{max(0, free) / 2**30:.1f} GiB are free; {advice}"
    )
