"""The Mamba-2 mixer with the parameter names of mamba_ssm.modules.mamba2.Mamba2 (ngroups 1), and its RMSNorm."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.backends import Backend
from aim_lightning.models.aim.backends.plain import MixerState, TorchBackend

FLOAT32_PARAMETERS = ("dt_bias", "A_log", "D")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed and returned in float32 or wider."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight.to(x.dtype)


class Mamba2Mixer(nn.Module):
    """Hold the mixer's parameters and prepare what every backend needs; `backend` does the arithmetic.

    Maps u_BLD to y_BLD; `step` does the same one position at a time. A_log, dt_bias and D stay in float32 when the
    other weights are converted: exp(A_log) amplifies rounding over a complete sequence (mamba_ssm#6).
    """

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = TorchBackend()
        self.in_proj = nn.Linear(config.d_model, 2 * config.d_inner + 2 * config.d_state + config.nheads, bias=False)
        self.conv1d = nn.Conv1d(config.conv_dim, config.conv_dim, config.d_conv, groups=config.conv_dim)
        for name in FLOAT32_PARAMETERS:
            setattr(self, name, nn.Parameter(torch.empty(config.nheads, dtype=torch.float32)))
        self.norm = RMSNorm(config.d_inner)
        self.out_proj = nn.Linear(config.d_inner, config.d_model, bias=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Sample A from U(1, 16) and softplus(dt_bias) log-uniformly from (0.001, 0.1), at least 1e-4."""
        uniform = torch.rand(2, self.config.nheads, generator=generator)
        with torch.no_grad():
            self.A_log.copy_(torch.log(1 + 15 * uniform[0]))
            log_dt = math.log(0.001) + uniform[1] * (math.log(0.1) - math.log(0.001))
            dt = log_dt.exp().clamp(min=1e-4)
            # The inverse of softplus, dt + log(1 - exp(-dt)), written so that small dt keep their digits.
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            self.D.fill_(1.0)

    def forward(self, u_BLD: Tensor) -> Tensor:
        """Map complete sequences, from an empty state."""
        return self.backend.mix(self, u_BLD)

    def step(self, u_BD: Tensor, state: MixerState) -> Tensor:
        """Map one position; `state` is updated in place."""
        return self.backend.step(self, u_BD, state)

    def project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z, the convolution's input (x, B, C) and the raw step width."""
        sizes = (self.config.d_inner, self.config.conv_dim, self.config.nheads)
        return self.in_proj(u).split(sizes, dim=-1)

    def split_xbc(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the convolution's output into x, B and C."""
        return xbc.split((self.config.d_inner, self.config.d_state, self.config.d_state), dim=-1)

    def negative_a(self) -> Tensor:
        """Return A_H, the negative decay rate of each head."""
        return -torch.exp(self.A_log)

    def scan_inputs(self, xbc: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return x by heads, B, C, the positive step width and the negative A: float32 (float64 stays)."""
        dtype = torch.promote_types(xbc.dtype, torch.float32)
        x, b, c = self.split_xbc(xbc.to(dtype))
        x = x.unflatten(-1, (self.config.nheads, self.config.headdim))
        return x, b, c, F.softplus(dt.to(dtype) + self.dt_bias.to(dtype)), self.negative_a().to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Mamba2Mixer":
        """Move or convert like any module, but keep FLOAT32_PARAMETERS in float32 at least."""
        # Copied before the conversion: values that went through bfloat16 could not be restored.
        before = {name: getattr(self, name).data for name in FLOAT32_PARAMETERS}
        # `_apply` is behind `to`, `half`, `cuda` and `bfloat16`: private, but the only common point.
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = getattr(self, name)
            if moved.dtype.is_floating_point and moved.element_size() < torch.float32.itemsize:
                moved.data = value.to(moved.device, torch.float32)
        return self
