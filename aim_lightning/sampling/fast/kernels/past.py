"""Stored inputs of past codes: reading and prefetching them, and their sum in float32."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _prefetch


@triton.jit
def _mask(valid, cols, W: tl.constexpr):
    """Return the mask of valid codes and of a program's columns, which are padded to a power of two."""
    mask = valid[:, None]
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
    valid = past < step
    x_SW = tl.load(xs_ptr + past[:, None] * INNER + wide[None, :], _mask(valid, cols, W), 0.0)
    b_SN = tl.load(bs_ptr + past[:, None] * N + states[None, :], valid[:, None], 0.0)
    g_SH = tl.load(gs_ptr + heads[None, :] * T + past[:, None], valid[:, None], float("-inf"))
    return x_SW, b_SN, g_SH


@triton.jit
def _past_by_sums(
    xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Sum over past codes in float32, block by block; the next block is loaded while one is summed."""
    past, states = tl.arange(0, STEPS), tl.arange(0, N)
    HEADS: tl.constexpr = cols.shape[0] // P
    past_SHP = tl.zeros((STEPS, HEADS, P), tl.float32)
    x_SW, b_SN, g_SH = _block(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER, N, W)
    for _ in range(0, step, STEPS):
        past += STEPS
        next_x, next_b, next_g = _block(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER, N, W)
        weight_SH = tl.exp((decay[None, :] + g_SH).to(tl.float32)) * tl.sum(b_SN * c[None, :], axis=1)[:, None]
        past_SHP += weight_SH[:, :, None] * tl.reshape(x_SW, (STEPS, HEADS, P))
        x_SW, b_SN, g_SH = next_x, next_b, next_g
    return tl.reshape(tl.sum(past_SHP, axis=0), (HEADS * P,))


@triton.jit
def _fetch(
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


@triton.jit
def _fetch_ahead(
    xs_ptr, bs_ptr, step, part, PARTS: tl.constexpr, INNER: tl.constexpr, N: tl.constexpr, W: tl.constexpr,
    STEPS: tl.constexpr, AHEAD: tl.constexpr, AHEAD_B: tl.constexpr, LINE: tl.constexpr, LOADED: tl.constexpr = 0,
):  # fmt: skip
    """Prefetch packed x of the last AHEAD codes but the first LOADED ones, and a share of B of the last AHEAD_B."""
    pairs = (step + 1) // 2
    if AHEAD > 0:
        _fetch(xs_ptr, tl.maximum(step - AHEAD, LOADED) // 2, pairs, part * W, INNER, W, STEPS // 2, LINE)
    if AHEAD_B > 0:
        SHARE: tl.constexpr = (AHEAD_B // 2 + PARTS - 1) // PARTS
        begin = tl.maximum(step - AHEAD_B, 0) // 2 + part * SHARE
        _fetch(bs_ptr, begin, tl.minimum(begin + SHARE, pairs), 0, N, N, STEPS // 2, LINE)


@triton.jit
def _place(step_ptr, CHUNK: tl.constexpr):
    """Return the step, and the number of stored codes before it; CHUNK 0: no states, all codes are stored."""
    step = tl.load(step_ptr)
    past = step
    if CHUNK:
        past = step % CHUNK
    return step, past


@triton.jit
def _decay_before(decay_ptr, a_log_ptr, heads, past):
    """Return L of the previous code, zero before the first of a sequence or chunk, and A of heads."""
    return tl.load(decay_ptr + heads, mask=past + 0 * heads > 0, other=0.0), tl.exp(tl.load(a_log_ptr + heads))


@triton.jit
def _decay(before, loss):
    """Return L of this code; in float64 where a float32 running sum would lose digits (buffers.exponent_type)."""
    return before - loss.to(before.dtype)
