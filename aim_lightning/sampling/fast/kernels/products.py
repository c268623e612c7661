"""Matrix products of few rows with a weight that is read once: out_proj and the head."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _along, _prefetch, _start_next, _wait


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
def _load_factor(
    values_ptr, number, count, part, INNER: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr
):  # fmt: skip
    """Load BLOCK rows of x or the weight into registers, as tensor cores take them (fragments.py).

    number: of this block of rows; rows from `count` on are zero. Each warp has a part of the inner dimension, and a
    lane loads 16 bytes. Returns blocks of 32 inner values per warp: (4, 8 rows, WARPS, BLOCK / 8, 8 inner values, 1).
    """
    BLOCKS: tl.constexpr = INNER // (SPLIT * 32 * WARPS)
    row = number * BLOCK + _along(3, BLOCK // 8) * 8 + _along(1, 8)
    inner = part * (INNER // SPLIT) + _along(2, WARPS) * 32 + _along(0, 4) * 8 + _along(4, 8)
    blocks = ()
    for block in tl.static_range(BLOCKS):
        blocks += (tl.load(values_ptr + row * INNER + inner + block * 32 * WARPS, row + 0 * inner < count, 0.0),)
    return blocks


@triton.jit
def _factor(block):
    """Return a block of `_load_factor` as (WARPS, rows, inner values); their order is the same in both factors."""
    W: tl.constexpr = block.shape[2]
    G: tl.constexpr = block.shape[3]
    return tl.reshape(tl.permute(tl.reshape(block, (4, 8, W, G, 2, 2, 2)), (2, 3, 1, 4, 5, 0, 6)), (W, 8 * G, 32))


@triton.jit
def _product_with(
    weights, x_ptr, block_of_rows, M, part, INNER: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Compute `_product` with weights that are in registers already: load all of x, then multiply."""
    xs = _load_factor(x_ptr, block_of_rows, M, part, INNER, SPLIT, BLOCK_M, WARPS)
    sums_WNM = tl.zeros((WARPS, BLOCK_N, BLOCK_M), tl.float32)
    for block in tl.static_range(len(xs)):
        sums_WNM = tl.dot(_factor(weights[block]), tl.permute(_factor(xs[block]), (0, 2, 1)), sums_WNM)
    SIZE: tl.constexpr = WARPS * BLOCK_M * BLOCK_N
    sums = tl.reshape(tl.permute(sums_WNM, (0, 2, 1)), (SIZE,))
    # The indices are the values' own positions. `gather` ends the layout of the product, in which every warp would
    # repeat all that follows.
    return tl.sum(tl.reshape(tl.gather(sums, tl.arange(0, SIZE), 0), (WARPS, BLOCK_M, BLOCK_N)), axis=0)


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, out_ptr, M, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr, LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute out[part] = x weight^T over one of SPLIT parts of the inner dimension.

    While the previous kernel still computes x, CHAINED prefetches the weights into the cache, and EARLY, the number of
    warps, loads them into registers.
    """
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(2).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    # Weights never change within a sequence, so they may be read before the previous kernel has ended; x may not.
    _start_next(CHAINED)
    if EARLY:
        weights = _load_factor(weight_ptr, tl.program_id(0), COLS, part, INNER, SPLIT, BLOCK_N, EARLY)
        _wait(CHAINED)
        sums = _product_with(weights, x_ptr, tl.program_id(2), M, part, INNER, SPLIT, BLOCK_M, BLOCK_N, EARLY)
    else:
        if CHAINED:
            _prefetch_weights(weight_ptr, cols, part, COLS, INNER, SPLIT, BLOCK_K, LINE)
        _wait(CHAINED)
        sums = _product(x_ptr, weight_ptr, rows, cols, part, M, COLS, INNER, SPLIT, BLOCK_M, BLOCK_N, BLOCK_K)
    out = out_ptr + (part * M + rows[:, None]) * COLS + cols[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=(rows[:, None] < M) & (cols[None, :] < COLS))
