"""Autograd function of a complete Mamba-2 mixer, without its states and with its norm folded into the projection.

With g = y * SiLU(z) and r = 1 / RMS(g), out_proj(RMSNorm(g) * w) = r * (g @ (out_proj * w)ᵀ). The factor r per row is
applied by the next norm kernel, which reads the product anyway. Not for fp16, where g before its norm could overflow.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from aim_lightning.models.aim.fused.kernels.convolution import convolution_backward, convolution_forward
from aim_lightning.models.aim.fused.kernels.dual_scan import decays_forward, row_scales, scan_forward, scores_forward
from aim_lightning.models.aim.fused.kernels.dual_scan_backward import (
    gate_backward,
    projections_backward,
    scan_backward,
    scores_backward,
    steps_backward,
)
from aim_lightning.models.aim.fused.launch import launch
from aim_lightning.models.aim.fused.products import product_float32
from aim_lightning.models.aim.fused.tiling import BLOCK, scores_tile, tiling

CHUNK = 128  # rows whose tap gradients one program adds up


@dataclass(frozen=True)
class MixerShape:
    """Sizes of a mixer call: B images of L codes, H heads of P channels, N states; I = H * P, K = I + 2 N."""

    images: int
    length: int
    heads: int
    channels: int
    state: int
    taps: int
    dtype: torch.dtype
    weight_dtype: torch.dtype
    device: torch.device

    @property
    def inner(self) -> int:
        """Return I, the width of the heads together."""
        return self.heads * self.channels

    @property
    def convolved(self) -> int:
        """Return K, the width of x, B and C together."""
        return self.inner + 2 * self.state

    @property
    def blocks(self) -> int:
        """Return the number of blocks of rows."""
        return triton.cdiv(self.length, BLOCK)

    @property
    def tiles(self) -> int:
        """Return the number of tiles on and below the diagonal."""
        return self.blocks * (self.blocks + 1) // 2


class FusedMixer(torch.autograd.Function):
    """Map u_BLD and the mixer's parameters to (raw_BLD, row_scale_BL); the mixer's output is their product."""

    @staticmethod
    def forward(
        ctx: Any,
        u_BLD,
        in_weight,
        conv_weight,
        conv_bias,
        dt_bias,
        a_log,
        skip,
        norm_weight,
        out_weight,
        sizes,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        dtype = u_BLD.dtype
        heads, channels, _ = sizes
        shape = MixerShape(*u_BLD.shape[:2], *sizes, conv_weight.shape[-1], dtype, conv_weight.dtype, u_BLD.device)
        in_weight_low = in_weight.to(dtype)
        folded = (out_weight * norm_weight).to(dtype)
        zx_BLW = F.linear(u_BLD, in_weight_low)
        decays = _decays(shape, zx_BLW, dt_bias, a_log)
        post_BLK, scaled, scores = _convolve(shape, zx_BLW, decays, conv_weight, conv_bias)
        strides, unit = _strides(zx_BLW)
        g_BLI = torch.empty(shape.images, shape.length, shape.inner, dtype=dtype, device=u_BLD.device)
        squares = torch.empty(shape.images, heads, shape.length, dtype=torch.float32, device=u_BLD.device)
        launch(
            shape, scan_forward, (shape.images * heads, shape.blocks),
            post_BLK, scaled, zx_BLW, decays, skip, scores, g_BLI, squares,
            shape.length, heads, channels, shape.convolved, shape.blocks, decays[0].numel(), *strides,
            BLOCK=BLOCK, CHANNELS=_width(channels), UNIT=unit, **tiling("scan_forward", shape.dtype),
        )  # fmt: skip
        row_scale = torch.empty(shape.images, shape.length, dtype=torch.float32, device=u_BLD.device)
        launch(
            shape, row_scales, (shape.images, triton.cdiv(shape.length, 128)),
            squares, row_scale, shape.length, heads, shape.inner, eps, ROWS=128,
        )  # fmt: skip
        ctx.save_for_backward(
            u_BLD, zx_BLW, g_BLI, row_scale, in_weight_low, folded, conv_weight, conv_bias, dt_bias, a_log, skip,
            norm_weight, out_weight,
        )  # fmt: skip
        ctx.shape = shape
        return F.linear(g_BLI, folded), row_scale

    @staticmethod
    def backward(ctx: Any, d_raw_BLD: Tensor, d_row_scale: Tensor) -> tuple:
        (u_BLD, zx_BLW, g_BLI, row_scale, in_weight, folded, conv_weight, conv_bias, dt_bias, a_log, skip, norm_weight,
         out_weight) = ctx.saved_tensors  # fmt: skip
        shape = ctx.shape
        d_raw_TD = d_raw_BLD.flatten(0, 1)
        d_folded = product_float32(d_raw_TD.T, g_BLI.flatten(0, 1))
        d_zx_BLW = torch.empty_like(zx_BLW)
        # Computed again rather than stored: it takes microseconds and would take memory.
        decays = _decays(shape, zx_BLW, dt_bias, a_log)
        dy = _gate(shape, d_raw_TD @ folded, g_BLI, zx_BLW, row_scale, d_row_scale.contiguous(), decays, d_zx_BLW)
        scan_grads = _scan(shape, zx_BLW, dy, decays, (conv_weight, conv_bias), (dt_bias, a_log, skip), d_zx_BLW)
        d_zx_TW = d_zx_BLW.flatten(0, 1)
        return (
            (d_zx_TW @ in_weight).view_as(u_BLD),
            product_float32(d_zx_TW.T, u_BLD.flatten(0, 1)),
            *scan_grads,
            (d_folded * out_weight).sum(0),
            d_folded * norm_weight,
            None,
            None,
        )


def _parts(shape: MixerShape, zx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of z, of x with B and C, and of dt."""
    z, xbc, dt = zx.split((shape.inner, shape.convolved, shape.heads), dim=-1)
    return z, xbc, dt


def _strides(zx_BLW: Tensor) -> tuple[tuple[int, int], int]:
    """Return the distances of images, and of rows in units of 8 values where they allow it, and the unit.

    Triton assumes alignment for multiples of 16 only. It would read two bytes at a time where rows are 3,352 values
    apart.
    """
    image, row = zx_BLW.stride()[:2]
    unit = 8 if row % 8 == 0 else 1
    return (image, row // unit), unit


def _grid(shape: MixerShape, width: int, name: str) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Return the grid over images, rows and columns of an elementwise kernel, and its tile."""
    tile = tiling(name, shape.dtype)
    return (shape.images, triton.cdiv(shape.length, tile["ROWS"]), triton.cdiv(width, tile["COLUMNS"])), tile


def _convolve(
    shape: MixerShape, zx_BLW: Tensor, decays: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return SiLU of the convolution (B, L, K), x with its step and decay (B, L, I), and the tiles of C Bᵀ."""
    _, xbc, _ = _parts(shape, zx_BLW)
    post = torch.empty(shape.images, shape.length, shape.convolved, dtype=zx_BLW.dtype, device=zx_BLW.device)
    scaled = torch.empty(shape.images, shape.length, shape.inner, dtype=zx_BLW.dtype, device=zx_BLW.device)
    strides, unit = _strides(zx_BLW)
    grid, tile = _grid(shape, shape.convolved, "convolution_forward")
    launch(
        shape, convolution_forward, grid, xbc, weight, bias, decays[4], post, scaled,
        shape.length, shape.convolved, shape.inner, shape.channels, *strides, TAPS=shape.taps, UNIT=unit,
        GROUP=min(shape.channels & -shape.channels, tile["COLUMNS"]), **tile,
    )  # fmt: skip
    scores = torch.empty(shape.images, shape.tiles, BLOCK, BLOCK, dtype=zx_BLW.dtype, device=zx_BLW.device)
    launch(
        shape, scores_forward, (shape.images, shape.blocks),
        post, scores, shape.length, shape.convolved, shape.inner, shape.state, shape.blocks,
        BLOCK=BLOCK, **scores_tile(_width(shape.state), shape.dtype),
    )  # fmt: skip
    return post, scaled, scores


def _decays(shape: MixerShape, zx_BLW: Tensor, dt_bias: Tensor, a_log: Tensor) -> Tensor:
    """Return step widths and decays within each block, float32 (5, B, H, L)."""
    _, _, dt = _parts(shape, zx_BLW)
    decays = torch.empty(5, shape.images, shape.heads, shape.length, dtype=torch.float32, device=zx_BLW.device)
    launch(
        shape, decays_forward, (shape.images, shape.blocks), dt, dt_bias, a_log, decays,
        shape.length, shape.heads, decays[0].numel(), *zx_BLW.stride()[:2],
        BLOCK=BLOCK, HEADS=triton.next_power_of_2(shape.heads),
    )  # fmt: skip
    return decays


def _gate(shape: MixerShape, dg, g_BLI, zx_BLW, row_scale, d_row_scale, decays, d_zx_BLW) -> tuple[Tensor, Tensor]:
    """Write dz into its slice of d_zx; return dy (B, L, I) and dy times the decay from the start of its block."""
    dy_BLI, scaled = torch.empty_like(g_BLI), torch.empty_like(g_BLI)
    strides, unit = _strides(zx_BLW)
    grid, tile = _grid(shape, shape.inner, "gate_backward")
    launch(
        shape, gate_backward, grid, dg, g_BLI, zx_BLW, row_scale, d_row_scale, decays[2], d_zx_BLW, dy_BLI, scaled,
        shape.length, shape.inner, shape.channels, *strides, UNIT=unit, **tile,
    )  # fmt: skip
    return dy_BLI, scaled


def _scan(shape: MixerShape, zx_BLW, dy, decays, convolution, per_head, d_zx_BLW) -> tuple[Tensor, ...]:
    """Write the gradients of x, B, C and dt into d_zx; return those of conv_weight, conv_bias, dt_bias, A_log and D."""
    (dt_bias, a_log, skip), strides = per_head, zx_BLW.stride()[:2]
    images, heads, length, blocks = shape.images, shape.heads, shape.length, shape.blocks
    _, xbc, dt = _parts(shape, zx_BLW)
    _, d_xbc, d_dt = _parts(shape, d_zx_BLW)
    # Computed again rather than stored: it would take a fifth more memory.
    post, scaled, scores = _convolve(shape, zx_BLW, decays, *convolution)
    d_post, d_scores = torch.empty_like(post), torch.empty_like(scores)
    new = lambda *sizes: torch.empty(*sizes, dtype=torch.float32, device=post.device)  # noqa: E731
    row_sums, d_skip = new(images, heads, blocks, length), new(images, heads, blocks)
    column_sums, diagonal_sums, diagonal_decay = new(3, images, heads, length)
    sizes = (length, heads, shape.channels, shape.convolved, blocks, decays[0].numel())
    widths = {"BLOCK": BLOCK, "CHANNELS": _width(shape.channels)}
    launch(
        shape, scan_backward, (images * heads, blocks), post, scaled, decays, skip, scores, *dy, d_post,
        row_sums, column_sums, diagonal_sums, diagonal_decay, d_skip, *sizes, **widths,
        **tiling("scan_backward", shape.dtype),
    )  # fmt: skip
    launch(
        shape, scores_backward, (images, shape.tiles), post, scaled, decays, *dy, d_scores, *sizes, **widths,
        **tiling("scores_backward", shape.dtype),
    )  # fmt: skip
    launch(
        shape, projections_backward, (images, blocks, 2),
        post, d_scores, d_post, length, shape.convolved, shape.inner, shape.state, blocks,
        BLOCK=BLOCK, STATE=_width(shape.state), **tiling("projections_backward", shape.dtype),
    )  # fmt: skip
    per_image = new(3, images, heads)
    launch(
        shape, steps_backward, (images * heads,), dt, dt_bias, a_log, decays, row_sums, column_sums, diagonal_sums,
        diagonal_decay, d_skip, d_dt, per_image, length, heads, blocks, decays[0].numel(), *strides,
        BLOCK=BLOCK, num_warps=1,
    )  # fmt: skip
    taps = _convolution_backward(shape, xbc, d_post, d_xbc, _strides(zx_BLW), *convolution)
    return taps[:-1].T.unsqueeze(1).contiguous(), taps[-1], *per_image.sum(1)


def _convolution_backward(shape: MixerShape, xbc, d_post, d_xbc, strides, weight, bias) -> Tensor:
    """Write d_xbc and return the gradients of taps and bias, (taps + 1, K)."""
    strides, unit = strides
    tile = tiling("convolution_backward", shape.dtype)
    chunks = triton.cdiv(shape.length, CHUNK)
    sums = torch.empty(shape.images * chunks, shape.taps + 1, shape.convolved, dtype=torch.float32, device=xbc.device)
    launch(
        shape, convolution_backward, (shape.images, chunks, triton.cdiv(shape.convolved, tile["COLUMNS"])),
        xbc, weight, bias, d_post, d_xbc, sums, shape.length, shape.convolved, CHUNK, *strides,
        TAPS=shape.taps, UNIT=unit, **tile,
    )  # fmt: skip
    return sums.sum(0)


def _width(size: int) -> int:
    """Return the tile width that holds `size` columns: a power of two, at least 16 for tensor cores."""
    return max(16, triton.next_power_of_2(size))
