"""The Mamba-2 mixer with the parameter names of mamba_ssm.modules.mamba2.Mamba2 (ngroups 1)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aim_lightning.models.aim.config import AiMConfig
from aim_lightning.models.aim.norm import RMSNorm
from aim_lightning.models.aim.scan import scan, scan_step_
from aim_lightning.models.aim.state import MixerState

# One quadratic block costs more than its matrix products gain beyond this many steps (benchmarks/scan.py).
LONGEST_TORCH_CHUNK = 64


class Mamba2Mixer(nn.Module):
    """Maps u_BLD to y_BLD; `step` does the same one position at a time.

    Parameters A_log, dt_bias and D are used in float32 whatever the autocast type.
    """

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.config = config
        self.in_proj = nn.Linear(config.d_model, 2 * config.d_inner + 2 * config.d_state + config.nheads, bias=False)
        self.conv1d = nn.Conv1d(config.conv_dim, config.conv_dim, config.d_conv, groups=config.conv_dim)
        self.dt_bias = nn.Parameter(torch.empty(config.nheads))
        self.A_log = nn.Parameter(torch.empty(config.nheads))
        self.D = nn.Parameter(torch.empty(config.nheads))
        self.norm = RMSNorm(config.d_inner)
        self.out_proj = nn.Linear(config.d_inner, config.d_model, bias=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """A in U(1, 16); the step width softplus(dt_bias) log-uniform in (0.001, 0.1), at least 1e-4."""
        uniform = torch.rand(2, self.config.nheads, generator=generator)
        with torch.no_grad():
            self.A_log.copy_(torch.log(1 + 15 * uniform[0]))
            log_dt = math.log(0.001) + uniform[1] * (math.log(0.1) - math.log(0.001))
            dt = log_dt.exp().clamp(min=1e-4)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            self.D.fill_(1.0)

    def forward(self, u_BLD: Tensor) -> Tensor:
        """Whole sequences, from an empty state."""
        z_BLI, xbc_BLK, dt_BLH = self._project(u_BLD)
        xbc_BLK = F.silu(self._causal_conv(xbc_BLK))
        with torch.autocast(u_BLD.device.type, enabled=False):
            x_BLHP, b_BLN, c_BLN, dt_BLH, a_H = self._scan_inputs(xbc_BLK, dt_BLH)
            chunk = min(self.config.chunk_size, LONGEST_TORCH_CHUNK)
            y_BLHP = scan(x_BLHP, dt_BLH, a_H, b_BLN, c_BLN, chunk)
            y_BLI = (y_BLHP + self._skip(x_BLHP)).flatten(-2)
        return self._output(y_BLI, z_BLI)

    def step(self, u_BD: Tensor, state: MixerState) -> Tensor:
        """One position; `state` is updated in place."""
        z_BI, xbc_BK, dt_BH = self._project(u_BD)
        window_BKW = torch.cat((state.conv_BKW, xbc_BK[..., None].to(state.conv_BKW.dtype)), dim=-1)
        state.conv_BKW.copy_(window_BKW[..., 1:])
        weight_KW = self.conv1d.weight[:, 0].to(xbc_BK.dtype)
        xbc_BK = (window_BKW.to(xbc_BK.dtype) * weight_KW).sum(-1) + self.conv1d.bias.to(xbc_BK.dtype)
        with torch.autocast(u_BD.device.type, enabled=False):
            x_BHP, b_BN, c_BN, dt_BH, a_H = self._scan_inputs(F.silu(xbc_BK), dt_BH)
            y_BHP = scan_step_(x_BHP, dt_BH, a_H, b_BN, c_BN, state.ssm_BHPN)
            y_BI = (y_BHP + self._skip(x_BHP)).flatten(-2)
        return self._output(y_BI, z_BI)

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, the convolution's input (x, B, C) and the raw step width."""
        sizes = (self.config.d_inner, self.config.conv_dim, self.config.nheads)
        z, xbc, dt = self.in_proj(u).split(sizes, dim=-1)
        return z, xbc, dt

    def _causal_conv(self, xbc_BLK: Tensor) -> Tensor:
        """Depthwise convolution as shifted products: several times faster on a CPU than grouped conv1d."""
        taps, length = self.config.d_conv, xbc_BLK.shape[1]
        weight_KW = self.conv1d.weight[:, 0].to(xbc_BLK.dtype)
        padded = F.pad(xbc_BLK, (0, 0, taps - 1, 0))
        y_BLK = self.conv1d.bias.to(xbc_BLK.dtype)
        for tap in range(taps):
            y_BLK = y_BLK + padded[:, tap : tap + length] * weight_KW[:, tap]
        return y_BLK

    def _scan_inputs(self, xbc: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x by heads, B, C, the positive step width and the negative A: float32 (float64 stays)."""
        dtype = torch.promote_types(xbc.dtype, torch.float32)
        sizes = (self.config.d_inner, self.config.d_state, self.config.d_state)
        x, b, c = xbc.to(dtype).split(sizes, dim=-1)
        x = x.unflatten(-1, (self.config.nheads, self.config.headdim))
        return x, b, c, F.softplus(dt.to(dtype) + self.dt_bias.to(dtype)), -torch.exp(self.A_log.to(dtype))

    def _skip(self, x: Tensor) -> Tensor:
        return self.D.to(x.dtype)[:, None] * x

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate, then norm, then project back: RMSNorm(y * SiLU(z))."""
        return self.out_proj(self.norm(y * F.silu(z.to(y.dtype))).to(z.dtype))
