"""The sum over the stored inputs of past codes, by multiplying and adding or by products on tensor cores."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _prefetch


@triton.jit
def _mask(known, cols, W: tl.constexpr):
    """Return the mask of known codes and of a program's columns, which are padded to a power of two."""
    mask = known[:, None]
    if W & (W - 1):
        mask = mask & (cols < W)[None, :]
    return mask


@triton.jit
def _load_columns(pointers, cols, W: tl.constexpr):
    """Load a program's columns, zero in the padding."""
    return tl.load(pointers, cols < W, 0.0) if W & (W - 1) else tl.load(pointers)


@triton.jit
def _store_columns(pointers, values, cols, W: tl.constexpr):
    """Store a program's columns without the padding."""
    if W & (W - 1):
        tl.store(pointers, values, cols < W)
    else:
        tl.store(pointers, values)


@triton.jit
def _block(
    xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr,
):  # fmt: skip
    """Load the stored inputs of past codes, x_SW, b_SN, g_SH; g = -inf gives later codes the weight zero."""
    known = past < step
    x_SW = tl.load(xs_ptr + past[:, None] * INNER + wide[None, :], _mask(known, cols, W), 0.0)
    b_SN = tl.load(bs_ptr + past[:, None] * N + states[None, :], known[:, None], 0.0)
    g_SH = tl.load(gs_ptr + heads[None, :] * T + past[:, None], known[:, None], float("-inf"))
    return x_SW, b_SN, g_SH


@triton.jit
def _past_by_sums(
    blocks, xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Sum over past codes block by block; the next FIRST blocks are loaded while one is summed."""
    past, states = (FIRST - 1) * STEPS + tl.arange(0, STEPS), tl.arange(0, N)
    HEADS: tl.constexpr = cols.shape[0] // P
    past_SHP = tl.zeros((STEPS, HEADS, P), tl.float32)
    for _ in range(0, step, STEPS):
        past += STEPS
        # Loaded before the arithmetic on the current block, so that memory and arithmetic overlap.
        after = _block(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER, N, W)
        x_SW, b_SN, g_SH = blocks[0], blocks[1], blocks[2]
        scores_S = tl.sum(b_SN.to(tl.float32) * c[None, :], axis=1)
        weight_SH = tl.exp((decay[None, :] + g_SH).to(tl.float32)) * scores_S[:, None]
        past_SHP += weight_SH[:, :, None] * tl.reshape(x_SW, (STEPS, HEADS, P)).to(tl.float32)
        blocks = blocks[3:] + after
    return tl.reshape(tl.sum(past_SHP, axis=0), (HEADS * P,))


@triton.jit
def _block_of_products(
    xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr,
):  # fmt: skip
    """Load the stored inputs in the layout of products: x_SW, b_NS, g_RS."""
    known = past < step
    b_NS = tl.load(bs_ptr + past[None, :] * N + states[:, None], known[None, :], 0.0)
    x_SW = tl.load(xs_ptr + past[:, None] * INNER + wide[None, :], _mask(known, cols, W), 0.0)
    g_RS = tl.load(gs_ptr + heads[:, None] * T + past[None, :], known[None, :], float("-inf"))
    return x_SW, b_NS, g_RS


@triton.jit
def _products(x_SW, b_NS, g_RS, c_RN, decay):
    """Return (C B^T * decay) x, in two products on tensor cores."""
    weight_RS = tl.exp((decay[:, None] + g_RS).to(tl.float32))
    weight_RS *= tl.dot(c_RN, b_NS, input_precision="ieee")
    return tl.dot(weight_RS.to(x_SW.dtype), x_SW, input_precision="ieee")


@triton.jit
def _past_by_products(
    blocks, xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Sum over past codes by two products per block; the first FIRST blocks, which are loaded already, come last.

    A product has 16 rows, one per head; of a head's row only the head's columns count.
    """
    ROWS: tl.constexpr = heads.shape[0]
    states = tl.arange(0, N)
    c_RN = tl.broadcast_to(c[None, :], (ROWS, N)).to(xs_ptr.dtype.element_ty)
    sums_RW = tl.zeros((ROWS, cols.shape[0]), tl.float32)
    for first in range(FIRST * STEPS, step, STEPS):
        past = first + tl.arange(0, STEPS)
        more_x, more_b, more_g = _block_of_products(
            xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER, N, W
        )
        sums_RW += _products(more_x, more_b, more_g, c_RN, decay)
    for i in tl.static_range(FIRST):
        sums_RW += _products(blocks[3 * i], blocks[3 * i + 1], blocks[3 * i + 2], c_RN, decay)
    head_columns = tl.arange(0, ROWS)[:, None] == (cols // P)[None, :]
    return tl.sum(tl.where(head_columns, sums_RW, 0.0), axis=0)


@triton.jit
def _fetch_ahead(
    values_ptr, begin, end, first_column, STRIDE: tl.constexpr, W: tl.constexpr, STEPS: tl.constexpr,
    LINE: tl.constexpr,
):  # fmt: skip
    """Prefetch W columns of the codes from `begin` to `end` into the L2 cache, STEPS codes at a time."""
    LINES: tl.constexpr = (W + LINE - 1) // LINE
    lines = tl.arange(0, triton.next_power_of_2(LINES)) * LINE
    if LINES & (LINES - 1):
        lines = tl.minimum(lines, W - 1)
    lines += first_column
    for first in range(begin, end, STEPS):
        past = tl.minimum(first + tl.arange(0, STEPS), end - 1)
        _prefetch(values_ptr + past[:, None] * STRIDE + lines[None, :])
