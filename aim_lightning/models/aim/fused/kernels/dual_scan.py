"""Dual form of the Mamba-2 scan, forward: no state is formed (arXiv 2405.21060, section 6).

y_i = sum over j <= i of (C_i . B_j) exp(decay from j to i) dt_j x_j + D x_i, in blocks of BLOCK rows. C Bᵀ is one
matrix per image, shared by all heads. Below the diagonal the decay splits into three factors, each at most 1:
from the start of block i to row i, over the whole blocks between, and from j to the end of its block.
"""

import triton
import triton.language as tl

from aim_lightning.models.aim.fused.kernels.tiles import (
    PAST_END,
    causal_decay,
    dot,
    load_rows,
    sigmoid,
    softplus,
    store_rows,
)

# Smallest |z|: the backward divides g by SiLU(z), so z = 0 must not lose y.
TINY = tl.constexpr(1e-18)


@triton.jit
def away_from_zero(z):
    """Replace small z, so that g / SiLU(z) gives y again."""
    return tl.where(tl.abs(z) < TINY, tl.where(z < 0, -TINY, TINY), z)


@triton.jit
def tile_of(cb, image, i, j, blocks, BLOCK: tl.constexpr):
    """Return pointers to tile (i, j) of the stored lower block triangle of an image."""
    offset = tl.arange(0, BLOCK)
    index = image * (blocks * (blocks + 1) // 2) + i * (i + 1) // 2 + j
    return cb + (index * BLOCK + offset[:, None]) * BLOCK + offset[None, :]


@triton.jit
def decays_forward(
    dt, dt_bias, a_log, decays, length, heads, plane, stride_image, stride_row, BLOCK: tl.constexpr, HEADS: tl.constexpr
):  # fmt: skip
    """Compute step widths and decays of all heads within each block: five planes (images, heads, length) of float32.

    0: step width; 1: log decay from the start of the block to the row, its own included; 2: its exponential;
    3: decay from after the row to the end of the block; 4: step width times 3. Summed from both ends, so that no
    exponent is a difference of large numbers. Grid (images, blocks).
    """
    image = tl.program_id(0).to(tl.int64)
    row, head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, HEADS)
    mask = (row < length)[:, None] & (head < heads)[None, :]
    raw = tl.load(dt + image * stride_image + row[:, None] * stride_row + head[None, :], mask=mask, other=0.0)
    bias = tl.load(dt_bias + head, mask=head < heads, other=0.0).to(tl.float32)
    step = tl.where(mask, softplus(raw.to(tl.float32) + bias[None, :]), 0.0)
    log_decay = -step * tl.exp(tl.load(a_log + head, mask=head < heads, other=0.0).to(tl.float32))[None, :]
    from_start = tl.cumsum(log_decay, 0)
    to_end = tl.exp(tl.cumsum(log_decay, 0, reverse=True) - log_decay)
    at = decays + (image * heads + head[None, :]) * length + row[:, None]
    tl.store(at, step, mask=mask)
    tl.store(at + plane, from_start, mask=mask)
    tl.store(at + 2 * plane, tl.exp(from_start), mask=mask)
    tl.store(at + 3 * plane, to_end, mask=mask)
    tl.store(at + 4 * plane, step * to_end, mask=mask)


@triton.jit
def scores_forward(
    post, cb, length, width, inner, state, blocks, BLOCK: tl.constexpr, STATE: tl.constexpr, PART: tl.constexpr
):  # fmt: skip
    """Compute the tiles of C Bᵀ on and below the diagonal. Grid (images, blocks).

    B is read PART states at a time: 256 states in float32 would not fit the shared memory of all GPUs.
    """
    image, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column, offset = tl.arange(0, PART), tl.arange(0, BLOCK)
    start = post + image * length * width + inner
    c = ()
    for part in tl.static_range(0, STATE, PART):
        c = c + (load_rows(start + state + part, i * BLOCK + offset, width, column, length, state - part),)  # noqa: RUF005
    for j in range(i + 1):
        scores = tl.zeros([BLOCK, BLOCK], tl.float32)
        for part in tl.static_range(0, STATE, PART):
            b = load_rows(start + part, j * BLOCK + offset, width, column, length, state - part)
            scores = dot(c[part // PART], tl.trans(b), scores)
        tl.store(tile_of(cb, image, i, j, blocks, BLOCK), scores.to(cb.dtype.element_ty))


@triton.jit
def scan_forward(
    post, scaled, z, decays, skip, cb, g, squares,
    length, heads, channels, width, blocks, plane, stride_image, stride_units,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Compute g = y * SiLU(z) and its sum of squares per head and row. Grid (images * heads, blocks).

    `scaled` is x times its step width and decay to the end of its block, so that tiles below the diagonal are plain
    products. Heads of an image are neighbours in the grid, so that its C Bᵀ stays in the L2 cache.
    """
    stride_row = stride_units * UNIT  # a multiple that the compiler sees: it decides how wide loads are
    image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    i = blocks - 1 - tl.program_id(1)  # the longest loops first
    column, offset = tl.arange(0, CHANNELS), tl.arange(0, BLOCK)
    kind: tl.constexpr = g.dtype.element_ty
    inner = heads * channels
    steps = decays + (image * heads + head) * length
    xs = scaled + image * length * inner + head * channels
    acc = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for j in range(i):
        x = load_rows(xs, j * BLOCK + offset, inner, column, length, channels)
        whole = tl.load(steps + 2 * plane + (j + 1) * BLOCK - 1)
        acc = dot(tl.load(tile_of(cb, image, i, j, blocks, BLOCK)), x, acc * whole)
    row = i * BLOCK + offset
    step = tl.load(steps + row, mask=row < length, other=0.0)
    log_decay = tl.load(steps + plane + row, mask=row < length, other=PAST_END)
    x = load_rows(post + image * length * width + head * channels, row, width, column, length, channels)
    scores = tl.load(tile_of(cb, image, i, i, blocks, BLOCK)).to(tl.float32)
    scores = (scores * causal_decay(log_decay, offset) * step[None, :]).to(kind)
    y = dot(scores, x, acc * tl.exp(log_decay)[:, None]) + tl.load(skip + head).to(tl.float32) * x.to(tl.float32)
    gate = away_from_zero(
        load_rows(z + image * stride_image + head * channels, row, stride_row, column, length, channels).to(tl.float32)
    )
    gated = (y * gate * sigmoid(gate)).to(kind)
    store_rows(g + image * length * inner + head * channels, row, inner, column, length, channels, gated)
    inside = (row < length)[:, None] & (column < channels)[None, :]
    rounded = tl.where(inside, gated.to(tl.float32), 0.0)
    tl.store(squares + (image * heads + head) * length + row, tl.sum(rounded * rounded, 1), mask=row < length)


@triton.jit
def row_scales(squares, scale, length, heads, inner, eps, ROWS: tl.constexpr):
    """Compute 1 / RMS of each row from the heads' sums of squares, added in order. Grid (images, rows)."""
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    for head in range(heads):
        total += tl.load(squares + (image * heads + head) * length + row, mask=row < length, other=0.0)
    tl.store(scale + image * length + row, tl.rsqrt(total / inner + eps), mask=row < length)
