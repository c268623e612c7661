"""Convolutional pieces shared by encoder and decoder; names as in the published tokenizer."""

from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, dropout, conv, plus the input (through 1x1 where channels change)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Single-head self-attention over positions, with 1x1 convolutions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, HW, C)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Stride-2 convolution after padding right and bottom by one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour x2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, attention after each where asked for, then a change of size."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attention: bool, groups: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResidualBlock(widths[i], widths[i + 1], groups, dropout) for i in range(blocks))
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

    def products(self, side: int) -> tuple[int, int]:
        """Products an image for an input of side x side positions, and the side of the output."""
        count = products(self.res, side) + products(self.attn, side)
        for name, after in (("downsample", side // 2), ("upsample", side * 2)):
            if hasattr(self, name):
                return count + products(getattr(self, name), after), after
        return count, side


def products(part: nn.Module, side: int) -> int:
    """Multiplications an image of a part whose convolutions and attentions all give side x side positions."""
    count = 0
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d):
            count += layer.weight.numel() * side**2
        elif isinstance(layer, Attention):  # of queries with keys, and of their weights with values
            count += 2 * side**4 * layer.q.out_channels
    return count


def middle(channels: int, groups: int, dropout: float) -> nn.ModuleList:
    """Residual, attention, residual at the lowest resolution."""
    return nn.ModuleList(
        [
            ResidualBlock(channels, channels, groups, dropout),
            Attention(channels, groups),
            ResidualBlock(channels, channels, groups, dropout),
        ]
    )
