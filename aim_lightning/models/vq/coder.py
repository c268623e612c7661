"""Encoder and decoder of the VQ tokenizer; names as in the published tokenizer (LlamaGen)."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aim_lightning.models.vq.vq_config import VQConfig


class NormSiLU(nn.GroupNorm):
    """GroupNorm with the published epsilon, then SiLU."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, norm, SiLU, dropout, conv, plus the input (through 1x1 where channels change)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = NormSiLU(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = NormSiLU(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # Only where needed: the published checkpoints have no shortcut elsewhere.
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.dropout(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Single-head self-attention over positions, with 1x1 convolutions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, HW, C)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


def downsample(channels: int) -> nn.Sequential:
    """Build a convolution of stride 2 after padding right and bottom by one."""
    pad = nn.ZeroPad2d((0, 1, 0, 1))  # asymmetric, as published: padding=1 would shift the grid
    return nn.Sequential(OrderedDict(pad=pad, conv=nn.Conv2d(channels, channels, 3, stride=2)))


def upsample(channels: int) -> nn.Sequential:
    """Build nearest-neighbour upsampling by two, then a convolution."""
    enlarge = nn.Upsample(scale_factor=2.0, mode="nearest")
    return nn.Sequential(OrderedDict(enlarge=enlarge, conv=nn.Conv2d(channels, channels, 3, padding=1)))


class Level(nn.Module):
    """One resolution: residual blocks, optional attention after each, then an optional change of resolution."""

    def __init__(self, config: VQConfig, in_channels: int, out_channels: int, blocks: int, attention: bool) -> None:
        super().__init__()
        groups, widths = config.norm_groups, [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResidualBlock(widths[i], widths[i + 1], groups, config.dropout) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(out_channels, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def middle(channels: int, groups: int, dropout: float) -> nn.ModuleList:
    """Build the lowest resolution: residual block, attention, residual block."""
    first, last = (ResidualBlock(channels, channels, groups, dropout) for _ in range(2))
    return nn.ModuleList([first, Attention(channels, groups), last])


class Coder(nn.Module):
    """Share gradient checkpointing between encoder and decoder.

    gradient_checkpointing: keep only the levels' inputs for the backward pass and compute the rest again.
    """

    gradient_checkpointing = False

    def run_blocks(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Apply the blocks in order, checkpointed where the option is set and gradients are needed."""
        for block in blocks:
            # Without gradients nothing is stored, so there is nothing to recompute.
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


class Encoder(Coder):
    """Map (B, 3, H, W) to (B, z_channels, H / f, W / f)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            previous = widths[i - 1] if i else config.base_channels
            # Attention only at the lowest resolution, where its cost (side^4) is small.
            level = Level(config, previous, width, config.num_res_blocks, attention=i == last)
            if i < last:
                level.downsample = downsample(width)
            self.conv_blocks.append(level)
        self.mid = middle(widths[-1], config.norm_groups, config.dropout)
        self.norm_out = NormSiLU(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.run_blocks([*self.conv_blocks, *self.mid], self.conv_in(x))
        return self.conv_out(self.norm_out(x))


class Decoder(Coder):
    """Map (B, z_channels, h, w) to (B, 3, f h, f w); levels run from low to high resolution."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, last = config.widths[::-1], len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], config.norm_groups, config.dropout)
        self.conv_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            previous = widths[max(i - 1, 0)]
            level = Level(config, previous, width, config.num_res_blocks + 1, attention=i == 0)
            if i < last:
                level.upsample = upsample(width)
            self.conv_blocks.append(level)
        self.norm_out = NormSiLU(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.run_blocks([*self.mid, *self.conv_blocks], self.conv_in(z))
        return self.conv_out(self.norm_out(z))
