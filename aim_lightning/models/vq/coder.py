"""Encoder and decoder of the VQ tokenizer."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aim_lightning.models.vq.layers import Downsample, Level, Upsample, group_norm, middle, products
from aim_lightning.models.vq.vq_config import VQConfig


class Coder(nn.Module):
    """What encoder and decoder share.

    gradient_checkpointing: keep only the levels' inputs for the backward pass and compute the rest again.
    """

    gradient_checkpointing = False

    def through(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """One block after the other."""
        for block in blocks:
            again = self.gradient_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x

    def products(self, side: int) -> int:
        """Multiplications an image in convolutions and attention, for an input of side x side positions."""
        count, lowest = products(self.conv_in, side), side
        for level in self.conv_blocks:
            more, side = level.products(side)
            count, lowest = count + more, min(lowest, side)
        return count + products(self.mid, lowest) + products(self.conv_out, side)


class Encoder(Coder):
    """(B, 3, H, W) to (B, z_channels, H / f, W / f)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else config.base_channels
            level = Level(before, width, config.num_res_blocks, i == last, config.norm_groups, config.dropout)
            if i < last:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
        self.mid = middle(widths[-1], config.norm_groups, config.dropout)
        self.norm_out = group_norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.through([*self.conv_blocks, *self.mid], self.conv_in(x))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(Coder):
    """(B, z_channels, h, w) to (B, 3, f h, f w); levels run from low to high resolution."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, last = config.widths[::-1], len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], config.norm_groups, config.dropout)
        self.conv_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            before, blocks = widths[max(i - 1, 0)], config.num_res_blocks + 1
            level = Level(before, width, blocks, i == 0, config.norm_groups, config.dropout)
            if i < last:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
        self.norm_out = group_norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.through([*self.mid, *self.conv_blocks], self.conv_in(z))
        return self.conv_out(F.silu(self.norm_out(z)))
