"""Choose the backend of a network for its device, and log why."""

import functools
import importlib
import os
from typing import Protocol

import torch
from torch import Tensor, nn

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.backends.plain import MixerState, TorchBackend
from aim_lightning.utils.errors import UserError, first_line
from aim_lightning.utils.logging import log_once

BACKENDS = ("auto", "torch", "mamba_ssm", "triton")
INSTALL = "install it with `make install-cuda`, or choose backend: torch"
ELSEWHERE = "use it on an NVIDIA GPU in float32, bfloat16 or float16, or choose backend: torch"


class Backend(Protocol):
    """The three operations that a block needs; `mixer` holds the parameters, `norm` the weight and eps of a norm."""

    name: str
    kernels: str  # for `doctor`

    def mix(self, mixer: nn.Module, u_BLD: Tensor) -> Tensor: ...

    def step(self, mixer: nn.Module, u_BD: Tensor, state: MixerState) -> Tensor: ...

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]: ...


class BackendUnavailable:
    """Raise a UserError at every use, so that weights may still be moved through a device without this backend."""

    def __init__(self, name: str, obstacle: str) -> None:
        self.name, self.obstacle, self.kernels = name, obstacle, f"not usable: {obstacle}"

    def _refuse(self, *_: object) -> None:
        raise UserError(f"backend {self.name} cannot be used: {self.obstacle}")

    mix = step = add_norm = takes = trains = _refuse


def choose_backend(name: str, config: AiMConfig, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend for weights of this type on this device, and log once what `auto` took and why.

    Where the backend cannot run on the device, every use of the result raises a UserError.
    """
    if device.type == "mps":
        return BackendUnavailable("torch", "its scan needs float64, which MPS lacks; set --trainer.accelerator cpu")
    if name == "torch":
        return TorchBackend()
    obstacle, refusal = _obstacle(device, dtype), _triton_refusal(config, device, dtype)
    if name == "mamba_ssm":
        return BackendUnavailable(name, f"{obstacle}; {ELSEWHERE}") if obstacle else _mamba(config)
    if name == "triton" and refusal:
        return BackendUnavailable(name, f"{refusal}; {ELSEWHERE}")
    other = TorchBackend() if obstacle else _mamba(config)
    if refusal is None:
        if name == "auto":
            log_once(f"backend auto took triton: the weights are on an NVIDIA GPU; {other.name} decodes step by step")
        return _triton(other)
    reason = obstacle or f"its kernels are installed, and triton cannot be used: {refusal}"
    log_once(f"backend auto took {other.name}: {reason}")
    return other


def _triton_refusal(config: AiMConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why our kernels cannot train this network on this device; None when they can."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it has no kernels for {dtype}"
    try:
        from aim_lightning.models.aim.fused.stack import refusal  # needs Triton, which some platforms lack
    except ImportError as error:
        return f"Triton is not installed ({error})"
    return refusal(config, device) or launcher_fault(device)


def _triton(other: Backend) -> Backend:
    from aim_lightning.models.aim.backends.fused import TritonBackend

    return TritonBackend(other)


def require_backend(name: str) -> None:
    """Raise before anything is built if a backend cannot exist on this machine.

    Raises:
        UserError: an unknown name, or mamba_ssm is not installed.
    """
    if name not in BACKENDS:
        raise UserError(f"backend is {name!r}; use {', '.join(BACKENDS)}")
    if name == "mamba_ssm" and missing():
        raise UserError(f"backend mamba_ssm cannot be used: {missing()}")


@functools.cache
def missing() -> str | None:
    """Return why mamba-ssm's kernels cannot be imported; None when they can."""
    try:
        importlib.import_module("aim_lightning.models.aim.backends.mamba")
    except Exception as error:  # a broken compiled package may raise anything while it is imported
        return f"mamba-ssm is not usable ({first_line(error)}); {INSTALL}"
    return None


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why mamba-ssm's kernels cannot take weights of this type on this device."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # the kernels' own tests on a CPU
    if device.type != "cuda" and not interpreted:
        return f"the weights are on the {device.type.upper()}, its kernels need an NVIDIA GPU"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no kernels for {dtype}"
    return missing() or launcher_fault(device)


@functools.cache
def launcher_fault(device: torch.device) -> str | None:
    """Return why Triton cannot start kernels on a GPU; None when it can."""
    if device.type != "cuda":  # Triton's interpreter
        return None
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # compiles the launcher, as the first kernel would
    except Exception as error:  # no compiler, or one that fails
        return f"Triton needs a C compiler and Python's headers ({first_line(error)})"
    return None


@functools.cache
def _mamba(config: AiMConfig) -> Backend:
    # Imported here: the module needs mamba-ssm, which most machines lack.
    from aim_lightning.models.aim.backends.mamba import MambaBackend

    return MambaBackend(config)
