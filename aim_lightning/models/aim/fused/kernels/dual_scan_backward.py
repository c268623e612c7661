"""Dual form of the Mamba-2 scan, backward.

With M_ij = (dY_i . x_j) (C_i . B_j) exp(decay from j to i) dt_j, the gradient of the log decay at t is the sum of M
over i >= t > j. Row sums minus column sums would cancel large equal parts. The sum is instead built from parts that
do not cancel: row sums below t within its block, column sums before t within it, whole tiles that straddle the block,
and within the diagonal tile the difference of sums of the same float32 tile without its diagonal.
"""

import triton
import triton.language as tl

from aim_lightning.models.aim.fused.kernels.dual_scan import away_from_zero, tile_of
from aim_lightning.models.aim.fused.kernels.tiles import (
    PAST_END,
    causal_decay,
    dot,
    load_rows,
    per_head,
    sigmoid,
    store_rows,
)


@triton.jit
def gate_backward(
    dg, g, z, row_scale, d_row_scale, from_start, dz, dy, scaled, length, inner, channels, stride_image, stride_units,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Compute dz and dy from the gradient of g, and dy times the decay from the start of its block.

    y is g / SiLU(z), exact to rounding. The norm of g is folded into the projection: its own part of the gradient is
    -row_scale^3 d_row_scale / inner * g. Grid (images, rows, columns).
    """
    stride_row = stride_units * UNIT  # a multiple that the compiler sees: it decides how wide loads are
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    in_row = row < length
    scale = tl.load(row_scale + image * length + row, mask=in_row, other=0.0)
    d_scale = tl.load(d_row_scale + image * length + row, mask=in_row, other=0.0)
    start = image * length * inner
    value = load_rows(g + start, row, inner, column, length, inner).to(tl.float32)
    d = load_rows(dg + start, row, inner, column, length, inner).to(tl.float32)
    d -= (scale * scale * scale * d_scale / inner)[:, None] * value
    gate = away_from_zero(load_rows(z + image * stride_image, row, stride_row, column, length, inner).to(tl.float32))
    s = sigmoid(gate)
    store_rows(dz + image * stride_image, row, stride_row, column, length, inner, d * value * (1.0 / gate + 1.0 - s))
    d = (d * gate * s).to(dy.dtype.element_ty)
    store_rows(dy + start, row, inner, column, length, inner, d)
    decay = per_head(from_start, image, row, column, length, inner, channels)
    store_rows(scaled + start, row, inner, column, length, inner, d.to(tl.float32) * decay)


@triton.jit
def scan_backward(
    post, scaled, decays, skip, cb, dy, scaled_dy, d_post, row_sums, column_sums, diagonal_sums, diagonal_decay, d_skip,
    length, heads, channels, width, blocks, plane,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of x of one column block, and the sums that give the gradients of dt, A and D.

    row_sums (images, heads, blocks, length): of M over the columns of a block, without the decay of the blocks between;
    column_sums and diagonal_sums (images, heads, length): of M / dt over the rows below the block, and within it.
    Grid (images * heads, blocks).
    """
    image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    j = tl.program_id(1)  # block 0 has the longest loop and starts first
    column, offset = tl.arange(0, CHANNELS), tl.arange(0, BLOCK)
    kind: tl.constexpr = dy.dtype.element_ty
    inner = heads * channels
    steps = decays + (image * heads + head) * length
    flat = image * length * inner + head * channels
    row = j * BLOCK + offset
    xs = load_rows(scaled + flat, row, inner, column, length, channels)
    dx = tl.zeros([BLOCK, CHANNELS], tl.float32)
    # A real loop, from the last block up: unrolled, the compiler hoists all loads and spills registers.
    for k in tl.range(0, blocks - 1 - j):
        i = blocks - 1 - k
        below = i * BLOCK + offset
        d = load_rows(scaled_dy + flat, below, inner, column, length, channels)
        scores = tl.load(tile_of(cb, image, i, j, blocks, BLOCK))
        whole = tl.load(steps + 2 * plane + tl.minimum((i + 1) * BLOCK, length) - 1)
        product = dot(scores, xs, tl.zeros([BLOCK, CHANNELS], tl.float32))
        at = row_sums + ((image * heads + head) * blocks + j) * length + below
        tl.store(at, tl.sum(d.to(tl.float32) * product, 1), mask=below < length)
        dx = dot(tl.trans(scores), d, dx * whole)
    dx *= tl.load(steps + 3 * plane + row, mask=row < length, other=0.0)[:, None]
    per_row = (image * heads + head) * length + row
    x = load_rows(post + image * length * width + head * channels, row, width, column, length, channels)
    tl.store(column_sums + per_row, tl.sum(x.to(tl.float32) * dx, 1), mask=row < length)
    # The diagonal block, weight by weight.
    step = tl.load(steps + row, mask=row < length, other=0.0)
    log_decay = tl.load(steps + plane + row, mask=row < length, other=PAST_END)
    d = load_rows(dy + flat, row, inner, column, length, channels)
    scores = tl.load(tile_of(cb, image, j, j, blocks, BLOCK)).to(tl.float32)
    weights = (scores * causal_decay(log_decay, offset)).to(kind)
    dx = dot(tl.trans(weights), d, dx) * step[:, None] + tl.load(skip + head).to(tl.float32) * d.to(tl.float32)
    start = d_post + image * length * width + head * channels
    store_rows(start, row, width, column, length, channels, dx)
    tl.store(d_skip + (image * heads + head) * blocks + j, tl.sum(d.to(tl.float32) * x.to(tl.float32)))
    m = dot(d, tl.trans(x), tl.zeros([BLOCK, BLOCK], tl.float32)) * weights.to(tl.float32)
    # A sum over columns stays within a warp, one over rows does not: the diagonal is taken out by the former.
    on_diagonal = offset[:, None] == offset[None, :]
    diagonal = tl.sum(tl.where(on_diagonal, m, 0.0), 1)
    m = tl.where(on_diagonal, 0.0, m)
    below = tl.sum(m, 0)
    tl.store(diagonal_sums + per_row, below + diagonal, mask=row < length)
    crossing = tl.cumsum(tl.sum(m * step[None, :], 1) - below * step, 0, reverse=True)
    tl.store(diagonal_decay + per_row, crossing, mask=row < length)


@triton.jit
def scores_backward(
    post, scaled, decays, dy, scaled_dy, d_cb, length, heads, channels, width, blocks, plane,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of one tile of C Bᵀ, summed over all heads in order. Grid (images, tiles)."""
    image, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tile * 0
    for n in range(1, blocks):
        i += (tile >= n * (n + 1) // 2).to(tl.int32)
    j = tile - i * (i + 1) // 2
    offset, column = tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    rows_i, rows_j = i * BLOCK + offset, j * BLOCK + offset
    inner = heads * channels
    flat = image * length * inner
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    if i == j:
        for head in range(heads):
            d = load_rows(dy + flat + head * channels, rows_i, inner, column, length, channels)
            start = post + image * length * width + head * channels
            x = load_rows(start, rows_j, width, column, length, channels)
            steps = decays + (image * heads + head) * length
            step = tl.load(steps + rows_j, mask=rows_j < length, other=0.0)
            log_decay = tl.load(steps + plane + rows_i, mask=rows_i < length, other=PAST_END)
            product = dot(d, tl.trans(x), tl.zeros([BLOCK, BLOCK], tl.float32))
            acc += product * causal_decay(log_decay, offset) * step[None, :]
    else:
        for head in range(heads):
            d = load_rows(scaled_dy + flat + head * channels, rows_i, inner, column, length, channels)
            x = load_rows(scaled + flat + head * channels, rows_j, inner, column, length, channels)
            steps = decays + (image * heads + head) * length
            between = 1.0
            for block in range(j + 1, i):
                between *= tl.load(steps + 2 * plane + (block + 1) * BLOCK - 1)
            acc += dot(d, tl.trans(x), tl.zeros([BLOCK, BLOCK], tl.float32)) * between
    tl.store(tile_of(d_cb, image, i, j, blocks, BLOCK), acc.to(d_cb.dtype.element_ty))


@triton.jit
def projections_backward(
    post, d_cb, d_post, length, width, inner, state, blocks, BLOCK: tl.constexpr, STATE: tl.constexpr
):  # fmt: skip
    """Compute the gradients of C (third index 0) and B (1) from that of C Bᵀ. Grid (images, blocks, 2)."""
    image, block, is_b = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    offset, column = tl.arange(0, BLOCK), tl.arange(0, STATE)
    start = image * length * width + inner
    kind: tl.constexpr = post.dtype.element_ty
    acc = tl.zeros([BLOCK, STATE], tl.float32)
    if is_b == 0:
        for j in range(block + 1):
            b = load_rows(post + start, j * BLOCK + offset, width, column, length, state)
            acc = dot(tl.load(tile_of(d_cb, image, block, j, blocks, BLOCK)).to(kind), b, acc)
    else:
        for i in range(block, blocks):
            c = load_rows(post + start + state, i * BLOCK + offset, width, column, length, state)
            acc = dot(tl.trans(tl.load(tile_of(d_cb, image, i, block, blocks, BLOCK)).to(kind)), c, acc)
    target = d_post + start + tl.where(is_b == 0, state, 0)
    store_rows(target, block * BLOCK + offset, width, column, length, state, acc)


@triton.jit
def steps_backward(
    dt, dt_bias, a_log, decays, row_sums, column_sums, diagonal_sums, diagonal_decay, d_skip, d_dt, per_image,
    length, heads, blocks, plane, stride_image, stride_row, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the raw step widths, and per image those of dt_bias, A_log and D: (3, images, heads).

    Grid (images * heads).
    """
    image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    offset = tl.arange(0, BLOCK)
    rate = tl.exp(tl.load(a_log + head).to(tl.float32))
    bias = tl.load(dt_bias + head).to(tl.float32)
    dts = dt + image * stride_image + head
    sums = row_sums + (image * heads + head) * blocks * length
    per_head = (image * heads + head) * length
    total_bias = 0.0
    total_a = 0.0
    total_skip = 0.0
    for t in range(blocks):
        row = t * BLOCK + offset
        mask = row < length
        step = tl.load(decays + per_head + row, mask=mask, other=0.0)
        rows = tl.zeros([BLOCK], tl.float32)
        straddling = 0.0
        for j in range(t):
            between = 1.0  # decay over the blocks between j and i
            for i in range(j + 1, blocks):
                below = i * BLOCK + offset
                part = tl.load(sums + j * length + below, mask=below < length, other=0.0) * between
                rows += tl.where(i == t, part, 0.0)
                straddling += tl.where(i > t, tl.sum(part, 0), 0.0)
                between *= tl.load(decays + 2 * plane + per_head + tl.minimum((i + 1) * BLOCK, length) - 1)
        columns = tl.load(column_sums + per_head + row, mask=mask, other=0.0)
        weighted = columns * step
        d_decay = tl.cumsum(rows, 0, reverse=True) + tl.cumsum(weighted, 0) - weighted + straddling
        d_decay += tl.load(diagonal_decay + per_head + row, mask=mask, other=0.0)
        d_step = columns + tl.load(diagonal_sums + per_head + row, mask=mask, other=0.0) - rate * d_decay
        raw = tl.load(dts + row * stride_row, mask=mask, other=0.0).to(tl.float32)
        d_raw = tl.where(mask, d_step * sigmoid(raw + bias), 0.0)
        at = d_dt + image * stride_image + head + row * stride_row
        tl.store(at, d_raw.to(d_dt.dtype.element_ty), mask=mask)
        total_bias += tl.sum(d_raw, 0)
        total_a += tl.sum(tl.where(mask, d_decay * step, 0.0), 0)
        total_skip += tl.load(d_skip + (image * heads + head) * blocks + t)
    at = per_image + image * heads + head
    per_plane = (tl.num_programs(0)).to(tl.int64)
    tl.store(at, total_bias)
    tl.store(at + per_plane, -rate * total_a)
    tl.store(at + 2 * per_plane, total_skip)
