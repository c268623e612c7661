"""Products of few rows with a weight that is read once."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _prefetch, _start_next, _wait


@triton.jit
def _prefetch_weights(
    weight_ptr, cols, part, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, DEEP: tl.constexpr, LINE: tl.constexpr
):
    """Send a program's weights on their way to the L2 cache, an address every LINE values."""
    BLOCKS: tl.constexpr = (INNER + SPLIT * DEEP - 1) // (SPLIT * DEEP)
    known_cols = tl.minimum(cols, COLS - 1)
    for block in tl.static_range(BLOCKS):
        lines = (part * BLOCKS + block) * DEEP + tl.arange(0, DEEP // LINE) * LINE
        _prefetch(weight_ptr + known_cols[None, :] * INNER + tl.minimum(lines, INNER - 1)[:, None])


@triton.jit
def _product(
    x_ptr, weight_ptr, rows, cols, part, M, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """x weight^T over one of SPLIT parts of the inner dimension, (ROWS, WIDE) in float32.

    A part is whole blocks of DEEP; where they reach beyond INNER, what lies there counts as zero.
    """
    BLOCKS: tl.constexpr = (INNER + SPLIT * DEEP - 1) // (SPLIT * DEEP)
    inner = part * BLOCKS * DEEP + tl.arange(0, DEEP)
    weights = weight_ptr + cols[None, :] * INNER + inner[:, None]
    xs = x_ptr + rows[:, None] * INNER + inner[None, :]
    row_known, col_known = rows[:, None] < M, cols[None, :] < COLS
    sums = tl.zeros((ROWS, WIDE), tl.float32)
    for _ in range(BLOCKS):
        if INNER % (SPLIT * DEEP) == 0:  # known when compiling: no test of the inner dimension in the common case
            x, weight = tl.load(xs, row_known, 0.0), tl.load(weights, col_known, 0.0)
        else:
            x = tl.load(xs, row_known & (inner[None, :] < INNER), 0.0)
            weight = tl.load(weights, col_known & (inner[:, None] < INNER), 0.0)
        sums += tl.dot(x, weight)
        inner += DEEP
        weights += DEEP
        xs += DEEP
    return sums


@triton.jit
def _weights(weight_ptr, cols, part, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, DEEP: tl.constexpr):
    """A program's weights, all of them: blocks (DEEP, WIDE) of its part, which is a whole number of those."""
    BLOCKS: tl.constexpr = INNER // (SPLIT * DEEP)
    inner = part * BLOCKS * DEEP + tl.arange(0, DEEP)
    weights = weight_ptr + cols[None, :] * INNER + inner[:, None]
    blocks = ()
    for block in tl.static_range(BLOCKS):
        blocks += (tl.load(weights + block * DEEP, cols[None, :] < COLS, 0.0),)
    return blocks


@triton.jit
def _product_with(
    x_ptr, weights, rows, part, M, INNER: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):  # fmt: skip
    """`_product` with weights that are there already: x is read at once, then all is multiplied."""
    BLOCKS: tl.constexpr = INNER // (SPLIT * DEEP)
    xs = x_ptr + rows[:, None] * INNER + (part * BLOCKS * DEEP + tl.arange(0, DEEP))[None, :]
    blocks = ()
    for block in tl.static_range(BLOCKS):
        blocks += (tl.load(xs + block * DEEP, rows[:, None] < M, 0.0),)
    sums = tl.zeros((ROWS, WIDE), tl.float32)
    for block in tl.static_range(BLOCKS):
        sums = tl.dot(blocks[block], weights[block], sums)
    return sums


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, out_ptr, M, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr, DEEP: tl.constexpr, EARLY: tl.constexpr, LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """out[part] = x weight^T over one of SPLIT parts of the inner dimension.

    CHAINED: the weights are on their way to the cache while the kernel before still computes x; EARLY: they are read.
    """
    cols = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    rows = tl.program_id(2).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    _start_next(CHAINED)
    if EARLY:
        weights = _weights(weight_ptr, cols, part, COLS, INNER, SPLIT, DEEP)
        _wait(CHAINED)
        sums = _product_with(x_ptr, weights, rows, part, M, INNER, SPLIT, ROWS, WIDE, DEEP)
    else:
        if CHAINED:
            _prefetch_weights(weight_ptr, cols, part, COLS, INNER, SPLIT, DEEP, LINE)
        _wait(CHAINED)
        sums = _product(x_ptr, weight_ptr, rows, cols, part, M, COLS, INNER, SPLIT, ROWS, WIDE, DEEP)
    out = out_ptr + (part * M + rows[:, None]) * COLS + cols[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=(rows[:, None] < M) & (cols[None, :] < COLS))
