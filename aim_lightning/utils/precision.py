"""Products in float32 that are float32: not what autocast or TF32 make of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_products(allow_tf32: bool = False) -> Iterator[None]:
    """TF32 on or truly off, deterministic kernels chosen without timing; all put back afterwards."""
    flags = {
        (torch.backends.cuda.matmul, "allow_tf32"): allow_tf32,
        (torch.backends.cudnn, "allow_tf32"): allow_tf32,
        (torch.backends.cudnn, "benchmark"): False,
        (torch.backends.cudnn, "deterministic"): True,
    }
    before = {key: getattr(*key) for key in flags}
    try:
        for (place, name), value in flags.items():
            setattr(place, name, value)
        yield
    finally:
        for (place, name), value in before.items():
            setattr(place, name, value)


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Inside, float32 tensors are computed with in float32, whatever `trainer.precision` and TF32 say outside.

    For numbers to compare by: in bfloat16, SSIM's variances E[x²] - E[x]² cancel to nothing but rounding.
    """
    with torch.autocast(device_type, enabled=False), exact_products():
        yield
