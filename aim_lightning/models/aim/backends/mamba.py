"""AiM's mixer and norm on mamba-ssm's Triton kernels: the same parameters and names, NVIDIA GPUs.

Import it through `choose.missing`, which reports why that fails. Float32 products are exact, as PyTorch's own default
is, unless torch.set_float32_matmul_precision allows TF32 or TRITON_F32_DEFAULT says otherwise.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable

import torch

if "mamba_ssm" not in sys.modules and (spec := importlib.util.find_spec("mamba_ssm")):
    # Register the package without running its initialiser, which imports a CUDA extension that AiM never calls.
    sys.modules["mamba_ssm"] = importlib.util.module_from_spec(spec)
if torch.get_float32_matmul_precision() == "highest":
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # read when a kernel is first compiled

from mamba_ssm.ops.triton.layer_norm import rms_norm_fn
from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
from mamba_ssm.ops.triton.ssd_combined import (
    causal_conv1d_fwd_function,
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
)
from torch import Tensor, nn
from torch.nn import functional as F

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.backends.plain import MixerState, causal_conv, conv_step_

log = logging.getLogger(__name__)
# The convolution kernel reads rows of 16 bytes: its own channels, and the width of in_proj whose slice they are, must
# be multiples of this.
FUSED_MULTIPLE = 8
# The kernels count offsets in 32 bits and silently compute wrong values beyond (state-spaces/mamba issue 1015).
LARGEST_TENSOR = 2**31 - 1  # elements


class MambaBackend:
    """Fused convolution, scan, norm and projection where that kernel exists for this width, else the unfused scan.

    Args:
        config: sizes of the network; they decide between the two paths; the unfused one is logged once.
    """

    name = "mamba_ssm"

    def __init__(self, config: AiMConfig) -> None:
        reason = fused_refusal(config)
        self.fused = reason is None
        self.kernels = f"unfused scan, because {reason}" if reason else "fused scan, with causal-conv1d"
        if reason:
            log.info("mamba_ssm: %s", self.kernels)

    @torch.compiler.disable
    def mix(self, mixer: nn.Module, u_BLD: Tensor) -> Tensor:
        """Apply the mixer to complete sequences, from an empty state."""
        function = self._mix_fused if self.fused else self._mix_unfused
        return in_parts(lambda u_BLD: function(mixer, u_BLD), mixer.in_proj.out_features, u_BLD)

    def _mix_fused(self, mixer: nn.Module, u_BLD: Tensor) -> Tensor:
        # norm_before_gate=False: RMSNorm(y * SiLU(z)), as in `plain.gated_output`.
        return mamba_split_conv1d_scan_combined(
            mixer.in_proj(u_BLD),
            mixer.conv1d.weight[:, 0],
            mixer.conv1d.bias,
            mixer.dt_bias,
            mixer.negative_a(),
            D=mixer.D,
            chunk_size=mixer.config.chunk_size,
            rmsnorm_weight=mixer.norm.weight,
            rmsnorm_eps=mixer.norm.eps,
            outproj_weight=mixer.out_proj.weight,
            headdim=mixer.config.headdim,
            norm_before_gate=False,
        )

    def _mix_unfused(self, mixer: nn.Module, u_BLD: Tensor) -> Tensor:
        z_BLI, xbc_BLK, dt_BLH = mixer.project(u_BLD)
        x_BLI, b_BLN, c_BLN = mixer.split_xbc(F.silu(causal_conv(mixer, xbc_BLK)))
        y_BLHP = mamba_chunk_scan_combined(
            x_BLI.unflatten(-1, (mixer.config.nheads, -1)),
            dt_BLH,
            mixer.negative_a(),
            b_BLN[:, :, None],
            c_BLN[:, :, None],
            chunk_size=mixer.config.chunk_size,
            D=mixer.D,
            dt_bias=mixer.dt_bias,
            dt_softplus=True,
        )
        return self._output(mixer, y_BLHP.flatten(-2), z_BLI)

    @torch.compiler.disable
    def step(self, mixer: nn.Module, u_BD: Tensor, state: MixerState) -> Tensor:
        """Apply the mixer at one position; `state` is updated in place."""
        sizes = (-1, mixer.config.headdim)
        z_BI, xbc_BK, dt_BH = mixer.project(u_BD)
        x_BI, b_BN, c_BN = mixer.split_xbc(F.silu(conv_step_(mixer, xbc_BK, state)))
        # The kernel takes dt, A and D per channel; expanded views repeat the head's value without copying.
        y_BHP = selective_state_update(
            state.ssm_BHPN,
            x_BI.unflatten(-1, (mixer.config.nheads, -1)),
            dt_BH[..., None].expand(-1, *sizes),
            mixer.negative_a()[:, None, None].expand(*sizes, mixer.config.d_state),
            b_BN[:, None],
            c_BN[:, None],
            D=mixer.D[:, None].expand(*sizes),
            dt_bias=mixer.dt_bias[:, None].expand(*sizes),
            dt_softplus=True,
        )
        return self._output(mixer, y_BHP.flatten(-2), z_BI)

    def _output(self, mixer: nn.Module, y: Tensor, z: Tensor) -> Tensor:
        gated = rmsnorm_fn(y, mixer.norm.weight, None, z=z, eps=mixer.norm.eps, norm_before_gate=False)
        return mixer.out_proj(gated)

    @torch.compiler.disable
    def add_norm(self, x: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Add x to the residual (float32) and return (its RMSNorm in x's type, the residual), in one kernel."""

        def add(x, residual=None):
            options = {"prenorm": True, "residual_in_fp32": True, "eps": norm.eps}
            return rms_norm_fn(x, norm.weight, None, residual=residual, **options)

        return in_parts(add, x.shape[-1], *((x,) if residual is None else (x, residual)))


def in_parts(function: Callable, width: int, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Apply a function to parts of the batch whose offsets the kernels can count, and concatenate its results.

    Args:
        function: takes and returns tensors with the batch first.
        width: of its widest tensor, which replaces the last dimension.
        *tensors: arguments of equal shape.
    """
    images = max(LARGEST_TENSOR // (tensors[0][0].numel() // tensors[0].shape[-1] * width), 1)
    if len(tensors[0]) <= images:
        return function(*tensors)
    results = [function(*part) for part in zip(*(tensor.split(images) for tensor in tensors), strict=True)]
    return torch.cat(results) if isinstance(results[0], Tensor) else tuple(map(torch.cat, zip(*results, strict=True)))


def fused_refusal(config: AiMConfig) -> str | None:
    """Return why the fused path cannot be taken; None where it can."""
    if causal_conv1d_fwd_function is None:
        return "causal-conv1d cannot be imported"
    width = config.d_inner + config.conv_dim + config.nheads
    for part, size in (("in_proj", width), ("the convolution", config.conv_dim)):
        if size % FUSED_MULTIPLE:
            return f"{part} is {size} wide, not a multiple of {FUSED_MULTIPLE}"
    if not 2 <= config.d_conv <= 4:
        return f"causal-conv1d has no kernel for d_conv {config.d_conv}"
    return None
