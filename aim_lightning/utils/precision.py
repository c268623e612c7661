"""True float32 arithmetic, without autocast and TF32."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

CUDNN = {"enabled": True, "benchmark": False, "deterministic": True}


@contextmanager
def exact_products(allow_tf32: bool = False, in_matmul: bool = True) -> Iterator[None]:
    """Set TF32 explicitly and select deterministic kernels without timing.

    PyTorch's default is TF32 in convolutions. All settings are restored afterwards, also those made by torch's newer
    names (`fp32_precision`).

    Args:
        allow_tf32: use TF32 in convolutions and matrix products.
        in_matmul: False = TF32 in convolutions only.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with ExitStack() as after:
        for name, value in CUDNN.items():
            after.callback(setattr, cudnn, name, getattr(cudnn, name))
            setattr(cudnn, name, value)
        after.callback(*_restoring(lambda: cudnn.allow_tf32, lambda v: setattr(cudnn, "allow_tf32", v), cudnn.conv))
        after.callback(*_restoring(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, matmul))
        # The older names also set the newer ones, except that "off" leaves convolutions at their default.
        cudnn.allow_tf32 = allow_tf32
        cudnn.conv.fp32_precision = "tf32" if allow_tf32 else "ieee"
        torch.set_float32_matmul_precision("high" if allow_tf32 and in_matmul else "highest")
        yield


def _restoring(read: Callable[[], Any], write: Callable[[Any], None], newer: Any) -> tuple:
    """Return a callback and its arguments that restore a setting."""
    try:
        return write, read()
    except RuntimeError:  # torch refuses to read by the older name what was set by the newer one
        return setattr, newer, "fp32_precision", newer.fp32_precision


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Compute float32 tensors in float32, independent of `trainer.precision` and TF32.

    For metrics: in bfloat16 the variances E[x²] - E[x]² of SSIM cancel to rounding noise.

    Args:
        device_type: such as "cuda".
    """
    with torch.autocast(device_type, enabled=False), exact_products():
        yield
