"""One residual block of AiM, the class modulation, and the embeddings and final norm around the blocks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aim_lightning.models.aim.aim_config import AiMConfig
from aim_lightning.models.aim.backends import Backend
from aim_lightning.models.aim.backends.plain import MixerState, TorchBackend
from aim_lightning.models.aim.mixer import Mamba2Mixer, RMSNorm
from aim_lightning.models.embedding import DeterministicEmbedding


def modulation_head(d_model: int, rows: int) -> nn.Sequential:
    """Build SiLU then linear: the class embedding to `rows` vectors of width d_model."""
    return nn.Sequential(nn.SiLU(), nn.Linear(d_model, rows * d_model))


class GatedMLP(nn.Module):
    """Gated MLP, fc2(value * SiLU(gate)) of fc1; names as mamba_ssm.modules.mlp.GatedMLP."""

    def __init__(self, d_model: int, d_intermediate: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * d_intermediate, bias=False)
        self.fc2 = nn.Linear(d_intermediate, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * F.silu(gate))


class Block(nn.Module):
    """Residual block with class modulation.

    residual += x; x = gate * mixer(RMSNorm(residual) * (1 + scale) + shift); the same again for an MLP.
    """

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
        """Return this layer's rows (B, R, d), in the order shift, scale, gate; None without adaLN."""
        if hasattr(self, "adaLN_modulation"):
            return self.adaLN_modulation(class_BD).unflatten(-1, (self.rows, -1))
        if group_BRD is not None:
            return group_BRD + self.scale_shift_table
        return None

    def forward(
        self, x: Tensor, residual: Tensor | None, rows_BRD: Tensor | None, state: MixerState | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map sequences (B, L, d), or with `state` one position (B, d).

        Returns:
            (x, residual), the residual in float32; the block's output is their sum.
        """
        mixer = self.mixer if state is None else (lambda h: self.mixer.step(h, state))
        mixer_rows, mlp_rows = self._split(rows_BRD, has_length=state is None)
        x, residual = self._branch(x, residual, self.norm, mixer, self.mixer_dropout, mixer_rows)
        if hasattr(self, "mlp"):
            x, residual = self._branch(x, residual, self.norm2, self.mlp, self.mlp_dropout, mlp_rows)
        return x, residual

    def _branch(self, x, residual, norm, inner, dropout, rows) -> tuple[Tensor, Tensor]:
        """Apply a pre-norm branch; the residual stays float32 under autocast and for bfloat16 weights."""
        # The backend may fuse the addition and the norm.
        h, residual = self.backend.add_norm(x, residual, norm)
        if rows is None:
            return dropout(inner(h.to(x.dtype))), residual
        shift, scale, gate = rows
        return gate * dropout(inner((h * (1 + scale) + shift).to(x.dtype))), residual

    def _split(self, rows_BRD: Tensor | None, has_length: bool) -> tuple[Tensor | None, Tensor | None]:
        """Split the rows by branch, each (3, B, 1, d) or (3, B, d)."""
        if rows_BRD is None:
            return None, None
        rows = rows_BRD.transpose(0, 1)
        rows = rows[:, :, None] if has_length else rows  # broadcast over the sequence
        # The published order is shift, shift, scale, scale, gate, gate: mixer and MLP alternate.
        return (rows, None) if self.rows == 3 else (rows[0::2], rows[1::2])


class CodeEmbeddings(nn.Module):
    """Embedding of codes, plus the absolute position embedding where the configuration has one."""

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.word_embeddings = DeterministicEmbedding(config.vocab_size, config.d_model)
        if config.position_embedding:
            # Every position occurs once, so PyTorch's own gradient has a fixed order.
            self.position_embeddings = nn.Embedding(config.num_tokens + 1, config.d_model)

    def forward(self, codes: Tensor, positions: Tensor) -> Tensor:
        """Embed codes and positions, int64 of shapes that broadcast; adds the last dimension D."""
        # Positions broadcast over the batch.
        words = self.word_embeddings(codes)
        return words + self.position_embeddings(positions) if hasattr(self, "position_embeddings") else words


class ClassEmbedding(nn.Module):
    """Embedding of labels; the last row of the table is the null class of guidance."""

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.embedding_table = DeterministicEmbedding(config.num_classes + 1, config.d_model)

    def forward(self, labels_B: Tensor) -> Tensor:
        return self.embedding_table(labels_B)


class FinalLayer(nn.Module):
    """A second RMSNorm, modulated by the class (shift, scale) unless adaln is ``none``."""

    def __init__(self, config: AiMConfig) -> None:
        super().__init__()
        self.norm_final = RMSNorm(config.d_model)
        if config.adaln != "none":
            self.adaLN_modulation = modulation_head(config.d_model, 2)

    def modulation(self, class_BD: Tensor) -> Tensor | None:
        """Return shift and scale, (B, 2, D); None without adaLN."""
        if not hasattr(self, "adaLN_modulation"):
            return None
        return self.adaLN_modulation(class_BD).unflatten(-1, (2, -1))

    def forward(self, h: Tensor, rows_B2D: Tensor | None) -> Tensor:
        h = self.norm_final(h)
        if rows_B2D is None:
            return h
        rows = rows_B2D.transpose(0, 1)
        shift, scale = rows[:, :, None] if h.dim() == 3 else rows
        return h * (1 + scale) + shift
