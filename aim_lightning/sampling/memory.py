"""How many images fit into a device's memory, and the one line for those that do not."""

import sys

import torch

from aim_lightning.utils.errors import UserError

SHARE = 0.9  # of what is free; the rest is for everything that nobody counts


def free_bytes(device: torch.device) -> int:
    """What a GPU has left, PyTorch's own unused blocks included; anything else is taken to have enough."""
    if device.type != "cuda":
        return sys.maxsize
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def fitting_batch(free: int, image_bytes: int) -> int:
    """Images that fit into so many free bytes, 0 or more."""
    return max(0, int(SHARE * free / image_bytes))


def too_large(images: int, fits: int, need: int, free: int) -> UserError:
    """The error for a batch of `images`, of which `fits` would fit; need and free in bytes."""
    advice = f"a batch of {fits} would fit (sampling.batch_size)" if fits else "not even one image would fit"
    return UserError(
        f"sampling {images} images at a time needs {need / 2**30:.1f} GiB of GPU memory, "
        f"{max(0, free) / 2**30:.1f} GiB are free; {advice}"
    )
