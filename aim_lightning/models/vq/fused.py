"""The decoder of a VQ tokenizer for inference on NVIDIA GPUs: bfloat16, channels-last, norm and SiLU in Triton kernels.

Its cost is memory traffic: at 256x256 pixels every tensor has 17 MB per image. PyTorch's group norm takes the plain
layout only, so that convolutions copy their inputs, and under autocast it writes float32. Here a norm with its SiLU
reads bfloat16 twice and writes it once, and an upsampled tensor is never written.
"""

import copy

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from aim_lightning.models.aim.fused.launch import launch
from aim_lightning.models.vq.coder import Decoder, NormSiLU, ResidualBlock
from aim_lightning.models.vq.model import VQModel

TILE = 4096  # values that a program holds at a time
PARTS = 64  # at most: programs that share one image


class FusedDecoder(nn.Module):
    """Copy of a tokenizer's decoder with the weights of the time when it is made.

    Args:
        tokenizer: on its GPU, with powers of two as widths and norm_groups; stays as it is.
    """

    def __init__(self, tokenizer: VQModel) -> None:
        super().__init__()
        self.quantize, self.grid = tokenizer.quantize, tokenizer.grid
        self.post_quant_conv = copy.deepcopy(tokenizer.post_quant_conv).to(torch.bfloat16)
        self.decoder = copy.deepcopy(tokenizer.decoder).requires_grad_(False)
        _fuse(self.decoder)

    @torch.no_grad()
    def decode(self, codes_BL: Tensor) -> Tensor:
        """Decode codes_BL to images, about [-1, 1], in bfloat16."""
        vectors_BCHW = self.quantize.lookup(codes_BL, self.grid).to(torch.bfloat16)
        # Channels-last from here on: convolutions keep the layout of their input.
        return self.decoder(self.post_quant_conv(vectors_BCHW.to(memory_format=torch.channels_last)))


class FusedNormSiLU(nn.Module):
    """Group norm and SiLU of (B, C, H, W) in bfloat16 and channels-last layout.

    Args:
        norm: its weights stay float32.
        shift: per channel, added before the norm: the bias of the convolution before it, saving a pass.
    """

    def __init__(self, norm: NormSiLU, shift: Tensor | None) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight.detach().float(), norm.bias.detach().float()
        self.shift = None if shift is None else shift.detach().float()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        images, channels, height, width = x_BCHW.shape
        rows, pixels = max(1, TILE // channels), height * width
        parts = min(PARTS, triton.next_power_of_2(triton.cdiv(pixels, 4 * rows)))
        part = triton.cdiv(triton.cdiv(pixels, parts), rows) * rows
        # One pair per program instead of atomic sums, whose order would change from call to call.
        sums = torch.zeros(images, parts, 2, self.groups, dtype=torch.float32, device=x_BCHW.device)
        result, key = torch.empty_like(x_BCHW), (x_BCHW.shape, x_BCHW.dtype, x_BCHW.device)
        sizes = {"HAS_SHIFT": self.shift is not None, "CHANNELS": channels, "GROUPS": self.groups, "ROWS": rows}
        launch(key, norm_sums, (parts, images), x_BCHW, self.shift, sums, pixels, part, **sizes)
        launch(
            key, norm_silu, (parts, images),
            x_BCHW, self.shift, sums, self.weight, self.bias, result, pixels, part, self.eps, **sizes, PARTS=parts,
        )  # fmt: skip
        return result


@triton.jit
def norm_sums(
    x, shift, sums, pixels, part,
    HAS_SHIFT: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum the values and their squares of each group over one part of an image; grid (parts, images)."""
    image, first = tl.program_id(1), tl.program_id(0) * part
    columns = tl.arange(0, CHANNELS)
    x += image.to(tl.int64) * pixels * CHANNELS  # all images have more than 2^31 values
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(first, first + part, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < pixels)[:, None]
        tile = tl.load(x + rows[:, None] * CHANNELS + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        if HAS_SHIFT:
            tile = tl.where(inside, tile + tl.load(shift + columns)[None, :], 0.0)
        total += tile
        squares += tile * tile
    groups = tl.arange(0, GROUPS)
    sums += (image * tl.num_programs(0) + tl.program_id(0)) * 2 * GROUPS
    tl.store(sums + groups, tl.sum(tl.reshape(tl.sum(total, 0), (GROUPS, CHANNELS // GROUPS)), 1))
    tl.store(sums + GROUPS + groups, tl.sum(tl.reshape(tl.sum(squares, 0), (GROUPS, CHANNELS // GROUPS)), 1))


@triton.jit
def norm_silu(
    x, shift, sums, weight, bias, result, pixels, part, eps,
    HAS_SHIFT: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Apply norm and SiLU to one part of an image; grid (parts, images)."""
    image, first = tl.program_id(1), tl.program_id(0) * part
    columns, groups = tl.arange(0, CHANNELS), tl.arange(0, GROUPS)
    places = sums + image * PARTS * 2 * GROUPS + tl.arange(0, PARTS)[:, None] * 2 * GROUPS + groups[None, :]
    count = pixels * (CHANNELS // GROUPS)
    mean = tl.sum(tl.load(places), 0) / count
    variance = tl.maximum(tl.sum(tl.load(places + GROUPS), 0) / count - mean * mean, 0.0)
    factor = tl.broadcast_to(tl.rsqrt(variance + eps)[:, None], (GROUPS, CHANNELS // GROUPS))
    centre = tl.broadcast_to(mean[:, None], (GROUPS, CHANNELS // GROUPS))
    factor, centre = tl.reshape(factor, (CHANNELS,)), tl.reshape(centre, (CHANNELS,))
    factor *= tl.load(weight + columns)
    if HAS_SHIFT:
        centre -= tl.load(shift + columns)
    offset = tl.load(bias + columns) - centre * factor
    x += image.to(tl.int64) * pixels * CHANNELS
    result += image.to(tl.int64) * pixels * CHANNELS
    for start in range(first, first + part, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < pixels)[:, None]
        values = rows[:, None] * CHANNELS + columns[None, :]
        y = tl.load(x + values, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
        tl.store(result + values, (y * tl.sigmoid(y)).to(result.dtype.element_ty), mask=inside)


def _fuse(decoder: Decoder) -> None:
    """Replace norms with SiLU, upsampling and types of a decoder in place."""
    shifts = {}
    for block in decoder.modules():
        if isinstance(block, ResidualBlock):
            shifts[block.norm2], block.conv1.bias = block.conv1.bias, None
    norms = {norm: FusedNormSiLU(norm, shifts.get(norm)) for norm in decoder.modules() if isinstance(norm, NormSiLU)}
    for level in decoder.conv_blocks:
        if hasattr(level, "upsample"):
            level.upsample = fold_upsampling(level.upsample.conv)  # 4/9 of the products
    decoder.to(torch.bfloat16, memory_format=torch.channels_last)
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if child in norms:
                setattr(module, name, norms[child])


@torch.no_grad()
def fold_upsampling(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Return the transposed convolution that equals upsampling by two, nearest neighbour, then a 3x3 convolution.

    An input pixel becomes 2x2 equal ones, so that it reaches 4x4 outputs; taps that meet the same input are added.
    """
    device = conv.weight.device
    result = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1, device=device)
    reach = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], device=device)
    result.weight.copy_(torch.einsum("jk,lm,oikm->iojl", reach, reach, conv.weight.float()))
    result.bias.copy_(conv.bias)
    return result
