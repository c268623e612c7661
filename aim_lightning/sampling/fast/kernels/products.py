"""Matrix products of few rows with a weight that is read once: out_proj and the head."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _prefetch, _start_next, _wait


@triton.jit
def _prefetch_weights(
    weight_ptr, cols, part, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr, LINE: tl.constexpr
):
    """Prefetch a program's weights into the L2 cache, one address every LINE values."""
    BLOCKS: tl.constexpr = (INNER + SPLIT * BLOCK_K - 1) // (SPLIT * BLOCK_K)
    valid_cols = tl.minimum(cols, COLS - 1)
    for block in tl.static_range(BLOCKS):
        lines = (part * BLOCKS + block) * BLOCK_K + tl.arange(0, BLOCK_K // LINE) * LINE
        _prefetch(weight_ptr + valid_cols[None, :] * INNER + tl.minimum(lines, INNER - 1)[:, None])


@triton.jit
def _product(
    x_ptr, weight_ptr, rows, cols, part, M, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return x weight^T over one of SPLIT parts of the inner dimension, (BLOCK_M, BLOCK_N) in float32.

    A part is a multiple of blocks of BLOCK_K; values beyond INNER count as zero.
    """
    BLOCKS: tl.constexpr = (INNER + SPLIT * BLOCK_K - 1) // (SPLIT * BLOCK_K)
    inner = part * BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    weights = weight_ptr + cols[None, :] * INNER + inner[:, None]
    xs = x_ptr + rows[:, None] * INNER + inner[None, :]
    row_valid, col_valid = rows[:, None] < M, cols[None, :] < COLS
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(BLOCKS):
        if INNER % (SPLIT * BLOCK_K) == 0:  # a compile-time test: the common case needs no mask
            x, weight = tl.load(xs, row_valid, 0.0), tl.load(weights, col_valid, 0.0)
        else:
            x = tl.load(xs, row_valid & (inner[None, :] < INNER), 0.0)
            weight = tl.load(weights, col_valid & (inner[:, None] < INNER), 0.0)
        sums += tl.dot(x, weight)
        inner += BLOCK_K
        weights += BLOCK_K
        xs += BLOCK_K
    return sums


@triton.jit
def _weights(weight_ptr, cols, part, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr):
    """Load all weights of a program: blocks (BLOCK_K, BLOCK_N) of its part, which is a multiple of them."""
    BLOCKS: tl.constexpr = INNER // (SPLIT * BLOCK_K)
    inner = part * BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    weights = weight_ptr + cols[None, :] * INNER + inner[:, None]
    blocks = ()
    for block in tl.static_range(BLOCKS):
        blocks += (tl.load(weights + block * BLOCK_K, cols[None, :] < COLS, 0.0),)
    return blocks


@triton.jit
def _product_with(
    x_ptr, weights, rows, part, M, INNER: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute `_product` with weights that are loaded already: load all of x, then multiply."""
    BLOCKS: tl.constexpr = INNER // (SPLIT * BLOCK_K)
    xs = x_ptr + rows[:, None] * INNER + (part * BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    blocks = ()
    for block in tl.static_range(BLOCKS):
        blocks += (tl.load(xs + block * BLOCK_K, rows[:, None] < M, 0.0),)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in tl.static_range(BLOCKS):
        sums = tl.dot(blocks[block], weights[block], sums)
    return sums


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, out_ptr, M, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr, LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute out[part] = x weight^T over one of SPLIT parts of the inner dimension.

    While the previous kernel still computes x, CHAINED prefetches the weights, and EARLY loads them.
    """
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(2).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    # Weights never change within a sequence, so they may be read before the previous kernel has ended; x may not.
    _start_next(CHAINED)
    if EARLY:
        weights = _weights(weight_ptr, cols, part, COLS, INNER, SPLIT, BLOCK_K)
        _wait(CHAINED)
        sums = _product_with(x_ptr, weights, rows, part, M, INNER, SPLIT, BLOCK_M, BLOCK_N, BLOCK_K)
    else:
        if CHAINED:
            _prefetch_weights(weight_ptr, cols, part, COLS, INNER, SPLIT, BLOCK_K, LINE)
        _wait(CHAINED)
        sums = _product(x_ptr, weight_ptr, rows, cols, part, M, COLS, INNER, SPLIT, BLOCK_M, BLOCK_N, BLOCK_K)
    out = out_ptr + (part * M + rows[:, None]) * COLS + cols[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=(rows[:, None] < M) & (cols[None, :] < COLS))
