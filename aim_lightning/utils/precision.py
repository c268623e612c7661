"""Products in float32 that are float32: not what autocast or TF32 make of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

CUDNN = {"enabled": True, "benchmark": False, "deterministic": True}


@contextmanager
def exact_products(allow_tf32: bool = False, in_matmul: bool = True) -> Iterator[None]:
    """TF32 on or truly off (PyTorch's default is on in convolutions), deterministic kernels chosen without timing.

    Everything is put back afterwards, also what was set by torch's newer names (`fp32_precision`).

    Args:
        allow_tf32: in convolutions and in products of matrices.
        in_matmul: False = in convolutions alone.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with ExitStack() as after:
        for name, value in CUDNN.items():
            after.callback(setattr, cudnn, name, getattr(cudnn, name))
            setattr(cudnn, name, value)
        after.callback(*_restoring(lambda: cudnn.allow_tf32, lambda v: setattr(cudnn, "allow_tf32", v), cudnn.conv))
        after.callback(*_restoring(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, matmul))
        # The older names set the newer ones too, not the other way round; only off leaves convolutions to the default.
        cudnn.allow_tf32 = allow_tf32
        cudnn.conv.fp32_precision = "tf32" if allow_tf32 else "ieee"
        torch.set_float32_matmul_precision("high" if allow_tf32 and in_matmul else "highest")
        yield


def _restoring(read: Callable[[], Any], write: Callable[[Any], None], newer: Any) -> tuple:
    """What puts a setting back: torch refuses to read it by its older name where it was set by the newer one."""
    try:
        return write, read()
    except RuntimeError:
        return setattr, newer, "fp32_precision", newer.fp32_precision


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Inside, float32 tensors are computed with in float32, whatever `trainer.precision` and TF32 say outside.

    For numbers to compare by: in bfloat16, SSIM's variances E[x²] - E[x]² cancel to nothing but rounding.
    """
    with torch.autocast(device_type, enabled=False), exact_products():
        yield
