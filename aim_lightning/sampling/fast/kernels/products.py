"""Matrix products of few rows with a weight that is read once: out_proj, the head, and the input of the mixer.

The latter is in_proj, SiLU of z, the causal convolution of x, B and C, and softplus of dt.
"""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _prefetch, _silu, _softplus, _start_next, _wait


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


@triton.jit
def _past_taps(ring_ptr, weight_ptr, bias_ptr, rows, channels, known, step, M, K, TAPS: tl.constexpr):
    """Return (the sum of bias and all taps of the causal convolution but the newest, the newest tap's weight).

    Columns that are not `known` channels get (0, 1), so that one formula serves all columns.
    """
    before = tl.load(bias_ptr + channels, known, 0.0)[None, :]
    for back in tl.static_range(1, TAPS):
        # The ring holds the last TAPS raw inputs; before the first code they count as zero.
        slot = (step - back + TAPS) % TAPS
        valid = (rows[:, None] < M) & known[None, :] & (step >= back)
        past = tl.load(ring_ptr + (slot * M + rows[:, None]) * K + channels[None, :], valid, 0.0)
        before += past.to(tl.float32) * tl.load(weight_ptr + (TAPS - 1 - back) * K + channels, known, 0.0)[None, :]
    return before, tl.load(weight_ptr + (TAPS - 1) * K + channels, known, 1.0)[None, :]


@triton.jit
def _activate(
    raw, before, newest, dt_bias, gate_ptr, xs_ptr, bs_ptr, c_ptr, dt_ptr, ring_ptr, rows, first, step, M, T,
    INNER: tl.constexpr, H: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store BLOCK_N columns of in_proj's result (z, x, B, C, dt side by side) from `first` on in the mixer's buffers.

    A program skips the buffers that none of its columns belong to.
    """
    K: tl.constexpr = INNER + 2 * N
    rows, cols = rows[:, None], (first + tl.arange(0, BLOCK_N))[None, :]
    last, known = first + BLOCK_N - 1, rows < M
    dtype = xs_ptr.dtype.element_ty
    channels, states, heads = cols - INNER, cols - 2 * INNER, cols - INNER - K
    values = _silu(before + raw * newest)
    if first < INNER:
        tl.store(gate_ptr + rows * INNER + cols, values.to(dtype), known & (cols < INNER))
    if (last >= INNER) & (first < INNER + K):
        ring = ring_ptr + ((step % TAPS) * M + rows) * K + channels
        tl.store(ring, raw.to(dtype), known & (channels >= 0) & (channels < K))
    if (last >= INNER) & (first < 2 * INNER):
        xs = xs_ptr + (rows * T + step) * INNER + channels
        tl.store(xs, values.to(dtype), known & (channels >= 0) & (channels < INNER))
    if (last >= 2 * INNER) & (first < INNER + K):
        tl.store(bs_ptr + (rows * T + step) * N + states, values.to(dtype), known & (states >= 0) & (states < N))
        tl.store(c_ptr + rows * N + states - N, values, known & (states >= N) & (states < 2 * N))
    if last >= INNER + K:
        tl.store(dt_ptr + rows * H + heads, _softplus(raw + dt_bias[None, :]), known & (heads >= 0) & (heads < H))


@triton.jit
def in_proj_kernel(
    x_ptr, weight_ptr, ring_ptr, conv_weight_ptr, conv_bias_ptr, dt_bias_ptr, gate_ptr, xs_ptr, bs_ptr, c_ptr, dt_ptr,
    step_ptr, M, T, D: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr, LINE: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute in_proj of BLOCK_M rows and BLOCK_N columns per program, then `_activate`.

    EARLY and CHAINED as in `linear_kernel`.
    """
    K: tl.constexpr = INNER + 2 * N
    COLS: tl.constexpr = INNER + K + H
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Read ahead of `_wait`: the step and the ring, which no kernel of this layer before this one writes.
    _start_next(CHAINED)
    step, channels = tl.load(step_ptr), cols - INNER
    if EARLY:
        weights = _weights(weight_ptr, cols, 0, COLS, D, 1, BLOCK_K)
    elif CHAINED:
        _prefetch_weights(weight_ptr, cols, 0, COLS, D, 1, BLOCK_K, LINE)
    known = (channels >= 0) & (channels < K)
    before, newest = _past_taps(ring_ptr, conv_weight_ptr, conv_bias_ptr, rows, channels, known, step, M, K, TAPS)
    dt_bias = tl.load(dt_bias_ptr + channels - K, (channels >= K) & (channels < K + H), 0.0)
    _wait(CHAINED)
    if EARLY:
        raw = _product_with(x_ptr, weights, rows, 0, M, D, 1, BLOCK_M, BLOCK_N, BLOCK_K)
    else:
        raw = _product(x_ptr, weight_ptr, rows, cols, 0, M, COLS, D, 1, BLOCK_M, BLOCK_N, BLOCK_K)
    _activate(
        raw, before, newest, dt_bias, gate_ptr, xs_ptr, bs_ptr, c_ptr, dt_ptr, ring_ptr, rows,
        tl.program_id(0) * BLOCK_N, step, M, T, INNER, H, N, TAPS, BLOCK_N,
    )  # fmt: skip


@triton.jit
def activate_kernel(
    zxbcdt_ptr, ring_ptr, conv_weight_ptr, conv_bias_ptr, dt_bias_ptr, gate_ptr, xs_ptr, bs_ptr, c_ptr, dt_ptr,
    step_ptr, M, T, INNER: tl.constexpr, H: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Apply `_activate` to a product in memory (float32); one program per row and BLOCK_N columns."""
    K: tl.constexpr = INNER + 2 * N
    COLS: tl.constexpr = INNER + K + H
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1).to(tl.int64) + tl.arange(0, 1)
    step, channels = tl.load(step_ptr), cols - INNER
    known = (channels >= 0) & (channels < K)
    before, newest = _past_taps(ring_ptr, conv_weight_ptr, conv_bias_ptr, rows, channels, known, step, M, K, TAPS)
    dt_bias = tl.load(dt_bias_ptr + channels - K, (channels >= K) & (channels < K + H), 0.0)
    raw = tl.load(zxbcdt_ptr + rows[:, None] * COLS + cols[None, :], (cols < COLS)[None, :], 0.0).to(tl.float32)
    _activate(
        raw, before, newest, dt_bias, gate_ptr, xs_ptr, bs_ptr, c_ptr, dt_ptr, ring_ptr, rows,
        tl.program_id(0) * BLOCK_N, step, M, T, INNER, H, N, TAPS, BLOCK_N,
    )  # fmt: skip
