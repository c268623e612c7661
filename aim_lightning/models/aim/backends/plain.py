"""AiM's mixer and norm in plain PyTorch: any device, any floating type, the definition of the right result."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.scan import scan, scan_step_

# One quadratic block costs more than its matrix products gain beyond this many steps (benchmarks/scan.py).
LONGEST_CHUNK = 64


@dataclass
class MixerState:
    """The decoding state of one layer between two codes.

    conv_BKW: the last d_conv - 1 inputs of the convolution; ssm_BHPN: the recurrent state.
    """

    conv_BKW: Tensor
    ssm_BHPN: Tensor

    @classmethod
    def empty(
        cls, config: AiMConfig, batch_size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> "MixerState":
        """Return the state before the first input: zeros."""
        conv = torch.zeros(batch_size, config.conv_dim, config.d_conv - 1, device=device, dtype=dtype)
        shape = (batch_size, config.nheads, config.headdim, config.d_state)
        return cls(conv, torch.zeros(shape, device=device, dtype=dtype))


class TorchBackend:
    """Chunked scan and recurrent step of `aim_lightning.models.aim.scan`."""

    name = "torch"
    kernels = "chunked scan in plain PyTorch"

    def mix(self, mixer: nn.Module, u_BLD: Tensor) -> Tensor:
        """Apply the mixer to complete sequences, from an empty state."""
        z_BLI, xbc_BLK, dt_BLH = mixer.project(u_BLD)
        xbc_BLK = F.silu(causal_conv(mixer, xbc_BLK))
        # The scan sums over the sequence: in bfloat16 its rounding would grow with the length.
        with torch.autocast(u_BLD.device.type, enabled=False):
            x_BLHP, b_BLN, c_BLN, dt_BLH, a_H = mixer.scan_inputs(xbc_BLK, dt_BLH)
            y_BLHP = scan(x_BLHP, dt_BLH, a_H, b_BLN, c_BLN, min(mixer.config.chunk_size, LONGEST_CHUNK))
            y_BLI = (y_BLHP + skip(mixer, x_BLHP)).flatten(-2)
        return gated_output(mixer, y_BLI, z_BLI)

    def step(self, mixer: nn.Module, u_BD: Tensor, state: MixerState) -> Tensor:
        """Apply the mixer at one position; `state` is updated in place."""
        z_BI, xbc_BK, dt_BH = mixer.project(u_BD)
        xbc_BK = F.silu(conv_step_(mixer, xbc_BK, state))
        with torch.autocast(u_BD.device.type, enabled=False):
            x_BHP, b_BN, c_BN, dt_BH, a_H = mixer.scan_inputs(xbc_BK, dt_BH)
            y_BHP = scan_step_(x_BHP, dt_BH, a_H, b_BN, c_BN, state.ssm_BHPN)
            y_BI = (y_BHP + skip(mixer, x_BHP)).flatten(-2)
        return gated_output(mixer, y_BI, z_BI)

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Add x to the residual and return (its RMSNorm, the residual), in float32 also under autocast."""
        residual = x.to(torch.promote_types(x.dtype, torch.float32)) if residual is None else residual + x
        return norm(residual), residual


def causal_conv(mixer: nn.Module, xbc_BLK: Tensor) -> Tensor:
    """Convolve depthwise by shifted products: several times faster on a CPU than grouped conv1d."""
    taps, length = mixer.config.d_conv, xbc_BLK.shape[1]
    weight_KW = mixer.conv1d.weight[:, 0].to(xbc_BLK.dtype)
    padded = F.pad(xbc_BLK, (0, 0, taps - 1, 0))  # on the left only, so that no position sees a later one
    y_BLK = mixer.conv1d.bias.to(xbc_BLK.dtype)
    for tap in range(taps):
        y_BLK = y_BLK + padded[:, tap : tap + length] * weight_KW[:, tap]
    return y_BLK


def conv_step_(mixer: nn.Module, xbc_BK: Tensor, state: MixerState) -> Tensor:
    """Convolve at one position and move the window in `state` on by one."""
    window_BKW = torch.cat((state.conv_BKW, xbc_BK[..., None].to(state.conv_BKW.dtype)), dim=-1)
    state.conv_BKW.copy_(window_BKW[..., 1:])
    weight_KW = mixer.conv1d.weight[:, 0].to(xbc_BK.dtype)
    return (window_BKW.to(xbc_BK.dtype) * weight_KW).sum(-1) + mixer.conv1d.bias.to(xbc_BK.dtype)


def skip(mixer: nn.Module, x: Tensor) -> Tensor:
    """Return D x, by heads."""
    return mixer.D.to(x.dtype)[:, None] * x


def gated_output(mixer: nn.Module, y: Tensor, z: Tensor) -> Tensor:
    """Gate, then norm, then project back: RMSNorm(y * SiLU(z))."""
    return mixer.out_proj(mixer.norm(y * F.silu(z.to(y.dtype))).to(z.dtype))
