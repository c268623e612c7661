"""mamba-ssm's code on a CPU: its PyTorch references, and its Triton kernels through Triton's interpreter.

`make install-dev` unpacks mamba-ssm and einops into .venv/mamba-reference, apart from the environment: no backend must
import them from there by accident.
"""

import contextlib
import importlib
import os
import sys
import types
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional as F

DIRECTORY = Path(sys.prefix) / "mamba-reference"


def available() -> bool:
    """Return True if `make install-dev` has unpacked the package."""
    return (DIRECTORY / "mamba_ssm").is_dir()


def make_importable() -> None:
    """Make `mamba_ssm.ops` importable; an empty module replaces the compiled code, which Mamba-2 never uses."""
    sys.path.append(str(DIRECTORY))
    sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")
    importlib.import_module("aim_lightning.models.aim.backends.mamba")


def interpret() -> None:
    """Run Triton's kernels on the CPU; call this before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    import triton
    from fast_interpreter import speed_up

    speed_up()
    autotune = triton.autotune
    triton.autotune = lambda configs, key, **options: autotune(configs[:1], key, **options)
    torch.cuda.device = lambda *_: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda *_: mock.Mock(multi_processor_count=1, major=8, minor=0)


def fake_causal_conv1d() -> None:
    """Provide causal-conv1d's three entry points in PyTorch, so that the fused path can run on a CPU."""
    package, functions = types.ModuleType("causal_conv1d"), types.ModuleType("causal_conv1d.cpp_functions")
    package.causal_conv1d_fn = lambda x, weight, bias, activation: _conv(x, weight, bias, activation == "silu")
    functions.causal_conv1d_fwd_function = lambda x, w, b, _seq, _init, _final, silu: _conv(x, w, b, silu)
    functions.causal_conv1d_bwd_function = _conv_backward
    functions.causal_conv1d_update_function = None
    package.cpp_functions = functions
    sys.modules |= {"causal_conv1d": package, "causal_conv1d.cpp_functions": functions}


def _conv(x_BKL, weight_KW, bias_K, silu):
    taps = weight_KW.shape[1]
    y = F.conv1d(F.pad(x_BKL, (taps - 1, 0)), weight_KW[:, None], bias_K, groups=len(weight_KW))
    return F.silu(y) if silu else y


def _conv_backward(x, weight, bias, dout, _seq, _init, _dfinal, dx, _return_dinit, silu):
    with torch.enable_grad():
        inputs = [value.detach().requires_grad_() for value in (x, weight, bias)]
        grads = torch.autograd.grad(_conv(*inputs, silu), inputs, dout)
    if dx is not None:
        dx.copy_(grads[0])
    return grads[0] if dx is None else dx, grads[1], grads[2], None
