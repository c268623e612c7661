"""One block of the transformer: causal attention with rotary positions and a key-value cache, and a SwiGLU MLP."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aim_lightning.models.gpt.gpt_config import GPTConfig

ROTARY_BASE = 10000.0  # of the frequencies, as in LlamaGen


def rotary_table(config: GPTConfig, device: torch.device) -> Tensor:
    """Return cosine and sine of every position's angles, float32 (num_tokens + 1, P / 2, 2) for heads of width P.

    Row 0 is the class token, which is not rotated (LlamaGen multiplies its query and key by zero instead). Row i + 1 is
    code i: the first half of the angles depends on its row, the second half on its column.
    """
    half = config.d_model // config.n_head // 2
    frequencies = ROTARY_BASE ** (-torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    angles = torch.arange(config.side, device=device)[:, None] * frequencies
    grid = torch.cat(
        (angles[:, None].expand(-1, config.side, -1), angles[None].expand(config.side, -1, -1)), dim=-1
    )  # fmt: skip
    angles_LP = F.pad(grid.flatten(0, 1), (0, 0, 1, 0))
    return torch.stack((angles_LP.cos(), angles_LP.sin()), dim=-1)


def rotate(x_BLHP: Tensor, table_LP2: Tensor) -> Tensor:
    """Rotate each pair of neighbouring channels by the angles of its position, in float32 or wider."""
    wide = x_BLHP.to(torch.promote_types(x_BLHP.dtype, torch.float32))
    even, odd = wide.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table_LP2[:, None].unbind(-1)  # one table for all heads
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x_BLHP.dtype)


@dataclass
class KeyValueCache:
    """Keys and values of one layer for the inputs so far, in memory for the complete sequence.

    Args:
        size: inputs of a complete sequence.
        length: inputs so far.
        memory: (2, B, H, size, P); allocated at the first input, whose type may be that of autocast.
    """

    size: int
    length: int = 0
    memory: Tensor | None = None

    def append(self, key_BH1P: Tensor, value_BH1P: Tensor) -> tuple[Tensor, Tensor]:
        """Store one input and return all keys and values so far, each (B, H, length, P)."""
        if self.memory is None:
            batch, heads, _, width = key_BH1P.shape
            self.memory = key_BH1P.new_empty(2, batch, heads, self.size, width)
        self.memory[0, :, :, self.length] = key_BH1P[:, :, 0]
        self.memory[1, :, :, self.length] = value_BH1P[:, :, 0]
        self.length += 1
        key, value = self.memory[:, :, :, : self.length]
        return key, value


class Attention(nn.Module):
    """Causal self-attention; names as in LlamaGen."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.wqkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.wo = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_BLD: Tensor, table_LP2: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Map sequences, or with `cache` the next input (B, 1, D)."""
        query, key, value = (part.unflatten(-1, (self.n_head, -1)) for part in self.wqkv(x_BLD).chunk(3, dim=-1))
        query, key = rotate(query, table_LP2), rotate(key, table_LP2)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if cache is not None:
            key, value = cache.append(key, value)
        # The newest input sees all keys of the cache, so that it needs no mask.
        y_BHLP = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        return self.wo(y_BHLP.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated MLP, w2(SiLU(w1 x) * w3 x); names as in LlamaGen."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.d_model, config.mlp_width, bias=False)
        self.w3 = nn.Linear(config.d_model, config.mlp_width, bias=False)
        self.w2 = nn.Linear(config.mlp_width, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm residual block: x += attention(RMSNorm(x)); x += MLP(RMSNorm(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.attention = Attention(config)
        self.mixer_dropout = nn.Dropout(config.mixer_dropout)
        self.ffn_norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.feed_forward = SwiGLU(config)
        self.mlp_dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, x_BLD: Tensor, table_LP2: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Map sequences, or with `cache` the next input (B, 1, D)."""
        x_BLD = x_BLD + self.mixer_dropout(self.attention(self.attention_norm(x_BLD), table_LP2, cache))
        return x_BLD + self.mlp_dropout(self.feed_forward(self.ffn_norm(x_BLD)))
