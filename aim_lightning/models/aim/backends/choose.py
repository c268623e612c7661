"""Which backend a network takes on its device, and why."""

import functools
import importlib
import logging
import os
from typing import Protocol

import torch
from torch import Tensor, nn

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.backends.plain import TorchBackend
from aim_lightning.models.aim.state import MixerState
from aim_lightning.utils.errors import UserError

BACKENDS = ("auto", "torch", "mamba_ssm")
INSTALL = "install it with `make install-cuda` on a machine with CUDA, or choose backend: torch"
ELSEWHERE = "use it on an NVIDIA GPU in float32, bfloat16 or float16, or choose backend: torch"
log = logging.getLogger(__name__)


class Backend(Protocol):
    """What a block asks for; `mixer` holds the parameters, `norm` the weight and eps of an RMSNorm."""

    name: str

    def mix(self, mixer: nn.Module, u_BLD: Tensor) -> Tensor: ...

    def step(self, mixer: nn.Module, u_BD: Tensor, state: MixerState) -> Tensor: ...

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]: ...


class BackendUnavailable:
    """Stands where a backend cannot run, so that weights may still be moved through such a device."""

    def __init__(self, name: str, obstacle: str) -> None:
        self.name, self.obstacle = name, obstacle

    def _refuse(self, *_: object) -> None:
        raise UserError(f"backend {self.name} cannot be used: {self.obstacle}")

    mix = step = add_norm = _refuse


def choose_backend(wanted: str, config: AiMConfig, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend for weights of this type on this device; what `auto` took and why is logged once.

    Where the backend cannot run on the device, every use of what is returned raises a UserError.
    """
    obstacle = _obstacle(device, dtype)
    if wanted == "mamba_ssm" and obstacle:
        return BackendUnavailable(wanted, f"{obstacle}; {ELSEWHERE}")
    if device.type == "mps":
        return BackendUnavailable("torch", "its scan needs float64, which MPS lacks; set --trainer.accelerator cpu")
    if wanted == "torch" or obstacle:
        if wanted == "auto":
            _log_once(f"backend auto took torch: {obstacle}")
        return TorchBackend()
    if wanted == "auto":
        _log_once("backend auto took mamba_ssm: the weights are on an NVIDIA GPU and its kernels are installed")
    return _mamba(config)


def require_backend(wanted: str) -> None:
    """Fail before anything is built where a backend can never be had on this machine.

    Raises:
        UserError: an unknown name, or mamba_ssm is not installed.
    """
    if wanted not in BACKENDS:
        raise UserError(f"backend is {wanted!r}; use {', '.join(BACKENDS)}")
    if wanted == "mamba_ssm" and missing():
        raise UserError(f"backend mamba_ssm cannot be used: {missing()}")


@functools.cache
def missing() -> str | None:
    """What keeps mamba-ssm's kernels from being imported; None when nothing does."""
    try:
        importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except Exception as error:  # a broken compiled package may raise anything while it is imported
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"mamba-ssm is not usable ({reason}); {INSTALL}"
    return None


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why mamba-ssm's kernels cannot take weights of this type on this device."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # the kernels' own tests on a CPU
    if device.type != "cuda" and not interpreted:
        return f"the weights are on the {device.type.upper()}, its kernels need an NVIDIA GPU"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no kernels for {dtype}"
    return missing()


@functools.cache
def _mamba(config: AiMConfig) -> Backend:
    from aim_lightning.models.aim.backends.mamba import MambaBackend

    return MambaBackend(config)


@functools.cache
def _log_once(message: str) -> None:
    log.info(message)
