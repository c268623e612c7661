"""One residual block of AiM and the class modulation that drives it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.backends import Backend
from aim_lightning.models.aim.backends.plain import TorchBackend
from aim_lightning.models.aim.mixer import Mamba2Mixer
from aim_lightning.models.aim.norm import RMSNorm
from aim_lightning.models.aim.state import MixerState


def modulation_head(d_model: int, rows: int) -> nn.Sequential:
    """SiLU then linear: the class embedding to `rows` vectors of width d_model."""
    return nn.Sequential(nn.SiLU(), nn.Linear(d_model, rows * d_model))


class GatedMLP(nn.Module):
    """fc2(fc1 value * SiLU(fc1 gate)), names as mamba_ssm.modules.mlp.GatedMLP."""

    def __init__(self, d_model: int, d_intermediate: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * d_intermediate, bias=False)
        self.fc2 = nn.Linear(d_intermediate, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * F.silu(gate))


class Block(nn.Module):
    """residual += x; x = gate * mixer(RMSNorm(residual) * (1 + scale) + shift); the same again for an MLP."""

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.rows = config.modulation_rows
        self.backend: Backend = TorchBackend()
        if config.adaln == "layer":
            self.adaLN_modulation = modulation_head(config.d_model, self.rows)
        elif config.adaln == "group":
            self.scale_shift_table = nn.Parameter(torch.empty(1, self.rows, config.d_model))
        self.norm = RMSNorm(config.d_model)
        self.mixer = Mamba2Mixer(config)
        self.mixer_dropout = nn.Dropout(config.mixer_dropout)
        if config.d_intermediate:
            self.norm2 = RMSNorm(config.d_model)
            self.mlp = GatedMLP(config.d_model, config.d_intermediate)
            self.mlp_dropout = nn.Dropout(config.mlp_dropout)

    def modulation(self, class_BD: Tensor, group_BRD: Tensor | None) -> Tensor | None:
        """This layer's rows (B, R, d), in the order shift, scale, gate; None without adaLN."""
        if hasattr(self, "adaLN_modulation"):
            return self.adaLN_modulation(class_BD).unflatten(-1, (self.rows, -1))
        if group_BRD is not None:
            return group_BRD + self.scale_shift_table
        return None

    def forward(
        self, x: Tensor, residual: Tensor | None, rows_BRD: Tensor | None, state: MixerState | None = None
    ) -> tuple[Tensor, Tensor]:
        """Whole sequences (B, L, d), or with `state` one position (B, d).

        Returns:
            (x, residual), the residual in float32; the block's output is their sum.
        """
        mixer = self.mixer if state is None else (lambda h: self.mixer.step(h, state))
        mixer_rows, mlp_rows = self._split(rows_BRD, whole_sequence=state is None)
        x, residual = self._branch(x, residual, self.norm, mixer, self.mixer_dropout, mixer_rows)
        if hasattr(self, "mlp"):
            x, residual = self._branch(x, residual, self.norm2, self.mlp, self.mlp_dropout, mlp_rows)
        return x, residual

    def _branch(self, x, residual, norm, inner, dropout, rows) -> tuple[Tensor, Tensor]:
        """Pre-norm branch with modulation; the residual stays float32 under autocast and for bf16 weights."""
        h, residual = self.backend.add_norm(x, residual, norm)
        if rows is None:
            return dropout(inner(h.to(x.dtype))), residual
        shift, scale, gate = rows
        return gate * dropout(inner((h * (1 + scale) + shift).to(x.dtype))), residual

    def _split(self, rows_BRD: Tensor | None, whole_sequence: bool) -> tuple[Tensor | None, Tensor | None]:
        """Rows by branch, each (3, B, 1, d) or (3, B, d): published order is by kind, mixer before MLP."""
        if rows_BRD is None:
            return None, None
        rows = rows_BRD.transpose(0, 1)
        rows = rows[:, :, None] if whole_sequence else rows
        return (rows, None) if self.rows == 3 else (rows[0::2], rows[1::2])
