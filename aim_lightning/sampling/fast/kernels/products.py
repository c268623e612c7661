"""Matrix products of few rows with a weight that is read once: in_proj, out_proj and the head.

in_proj_kernel contains the mixer's input (SiLU of z, causal convolution of x, B and C, softplus of dt), out_proj_kernel
the residual and the next norm.
"""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _prefetch, _silu, _softplus, _start_next, _wait


@triton.jit
def _prefetch_weights(weight_ptr, cols, COLS, INNER: tl.constexpr, BLOCK_K: tl.constexpr, LINE: tl.constexpr):
    """Prefetch a program's weights into the L2 cache, one address every LINE values."""
    valid_cols = tl.minimum(cols, COLS - 1)
    for block in tl.static_range((INNER + BLOCK_K - 1) // BLOCK_K):
        lines = block * BLOCK_K + tl.arange(0, BLOCK_K // LINE) * LINE
        _prefetch(weight_ptr + valid_cols[None, :] * INNER + tl.minimum(lines, INNER - 1)[:, None])


@triton.jit
def _axes(rows, cols, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr):
    """Return rows and inner values of x, then inner values and columns of the weight, as axes of their blocks.

    With GROUPS the inner values of a block have a leading axis: each warp multiplies its own part of them.
    """
    inner = tl.arange(0, BLOCK_K // GROUPS)
    if GROUPS == 1:
        axes = rows[:, None], inner[None, :], inner[:, None], cols[None, :]
    else:
        group = (tl.arange(0, GROUPS) * (BLOCK_K // GROUPS))[:, None, None]
        axes = rows[None, :, None], group + inner[None, None, :], group + inner[None, :, None], cols[None, None, :]
    return axes


@triton.jit
def _zeros(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUPS: tl.constexpr):
    return tl.zeros((BLOCK_M, BLOCK_N) if GROUPS == 1 else (GROUPS, BLOCK_M, BLOCK_N), tl.float32)


@triton.jit
def _total(sums, GROUPS: tl.constexpr):
    return sums if GROUPS == 1 else tl.sum(sums, axis=0)


@triton.jit
def _product(
    x_ptr, weight_ptr, rows, cols, M, COLS, INNER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Return x weight^T, (BLOCK_M, BLOCK_N) in float32, block by block of the inner values."""
    row, inner_x, inner_w, col = _axes(rows, cols, BLOCK_K, GROUPS)
    xs, weights = x_ptr + row * INNER + inner_x, weight_ptr + col * INNER + inner_w
    sums = _zeros(BLOCK_M, BLOCK_N, GROUPS)
    for first in range(0, INNER, BLOCK_K):
        if INNER % BLOCK_K == 0:  # a compile-time test: the common case needs no mask
            x, weight = tl.load(xs + first, row < M, 0.0), tl.load(weights + first, col < COLS, 0.0)
        else:
            x = tl.load(xs + first, (row < M) & (first + inner_x < INNER), 0.0)
            weight = tl.load(weights + first, (col < COLS) & (first + inner_w < INNER), 0.0)
        sums += tl.dot(x, weight)
    return _total(sums, GROUPS)


@triton.jit
def _weights(weight_ptr, cols, COLS, INNER: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr):
    """Load all weights of a program, blocks of BLOCK_K inner values, which divide INNER."""
    _, _, inner, col = _axes(cols, cols, BLOCK_K, GROUPS)
    blocks = ()
    for block in tl.static_range(INNER // BLOCK_K):
        blocks += (tl.load(weight_ptr + col * INNER + inner + block * BLOCK_K, col < COLS, 0.0),)
    return blocks


@triton.jit
def _product_with(
    x_ptr, weights, rows, M, INNER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Compute `_product` with weights that are loaded already: load all of x, then multiply."""
    row, inner, _, _ = _axes(rows, rows, BLOCK_K, GROUPS)
    blocks = ()
    for block in tl.static_range(INNER // BLOCK_K):
        blocks += (tl.load(x_ptr + row * INNER + inner + block * BLOCK_K, row < M, 0.0),)
    sums = _zeros(BLOCK_M, BLOCK_N, GROUPS)
    for block in tl.static_range(INNER // BLOCK_K):
        sums = tl.dot(blocks[block], weights[block], sums)
    return _total(sums, GROUPS)


@triton.jit
def _early(
    weight_ptr, cols, COLS, INNER: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr, EARLY: tl.constexpr,
    LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Load the weights, or prefetch them into the cache while the previous kernel still computes x."""
    # Weights never change within a sequence, so they may be read before the previous kernel has ended; x may not.
    weights = 0
    if EARLY:
        weights = _weights(weight_ptr, cols, COLS, INNER, BLOCK_K, GROUPS)
    elif CHAINED:
        _prefetch_weights(weight_ptr, cols, COLS, INNER, BLOCK_K, LINE)
    return weights


@triton.jit
def _multiply(
    x_ptr, weight_ptr, weights, rows, cols, M, COLS, INNER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUPS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Return x weight^T with the result of `_early`."""
    if EARLY:
        sums = _product_with(x_ptr, weights, rows, M, INNER, BLOCK_M, BLOCK_N, BLOCK_K, GROUPS)
    else:
        sums = _product(x_ptr, weight_ptr, rows, cols, M, COLS, INNER, BLOCK_M, BLOCK_N, BLOCK_K, GROUPS)
    return sums


@triton.jit
def _parts(squares_ptr, rows, M, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr):
    """Load the parts of each row's sum of squares."""
    parts = tl.arange(0, PARTS_BLOCK)[None, :]
    return tl.load(squares_ptr + rows[:, None] * PARTS + parts, (rows[:, None] < M) & (parts < PARTS), 0.0)


@triton.jit
def _by_rms(parts, count, eps):
    """Return the factor of each row, 1 / rms, as a column."""
    return tl.rsqrt(tl.sum(parts, axis=1) / count + eps)[:, None]


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, out_ptr, M, COLS, INNER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUPS: tl.constexpr, EARLY: tl.constexpr, LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute out = x weight^T. While the previous kernel computes x, weights are prefetched, or with EARLY loaded."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    _start_next(CHAINED)
    weights = _early(weight_ptr, cols, COLS, INNER, BLOCK_K, GROUPS, EARLY, LINE, CHAINED)
    _wait(CHAINED)
    sums = _multiply(x_ptr, weight_ptr, weights, rows, cols, M, COLS, INNER, BLOCK_M, BLOCK_N, BLOCK_K, GROUPS, EARLY)
    out = out_ptr + rows[:, None] * COLS + cols[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=(rows[:, None] < M) & (cols[None, :] < COLS))


@triton.jit
def out_proj_kernel(
    y_ptr, weight_ptr, squares_ptr, residual_ptr, gate_ptr, norm_ptr, rows_ptr, h_ptr, h_squares_ptr, M, eps,
    D: tl.constexpr, INNER: tl.constexpr, GATE_ROWS: tl.constexpr, ROWS: tl.constexpr, MODULATED: tl.constexpr,
    PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUPS: tl.constexpr, EARLY: tl.constexpr, LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute out_proj, add gate * (product / rms) to the residual, and multiply it by the factors of the next norm.

    The next norm's division and shift follow in `in_proj_kernel`, as they need complete rows: here each program leaves
    a part of the sum of squares. squares_ptr: those of the mixer, whose norm's division commutes with out_proj.
    """
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, col = rows[:, None], cols[None, :]
    mask = (row < M) & (col < D)
    _start_next(CHAINED)
    weights = _early(weight_ptr, cols, D, INNER, BLOCK_K, GROUPS, EARLY, LINE, CHAINED)
    residual = tl.load(residual_ptr + row * D + col, mask, 0.0)
    factor = tl.load(norm_ptr + col, col < D, 0.0).to(tl.float32)
    if MODULATED:
        factor = factor * (1 + tl.load(rows_ptr + (row * ROWS + 1) * D + col, mask, 0.0).to(tl.float32))
        gate = tl.load(gate_ptr + (row * GATE_ROWS + 2) * D + col, mask, 0.0).to(tl.float32)
    _wait(CHAINED)
    parts = _parts(squares_ptr, rows, M, PARTS, PARTS_BLOCK)
    x = _multiply(y_ptr, weight_ptr, weights, rows, cols, M, D, INNER, BLOCK_M, BLOCK_N, BLOCK_K, GROUPS, EARLY)
    x *= _by_rms(parts, INNER, eps)
    if MODULATED:
        x *= gate
    x += residual
    tl.store(residual_ptr + row * D + col, x, mask)
    tl.store(h_ptr + row * D + col, (x * factor).to(h_ptr.dtype.element_ty), mask)
    squares = tl.sum(tl.where(mask, x * x, 0.0), axis=1)
    tl.store(h_squares_ptr + rows * tl.num_programs(0) + tl.program_id(0), squares, rows < M)


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

    A program skips the buffers that none of its columns belong to. x and B are stored for T codes (1: the newest).
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
        xs = xs_ptr + (rows * T + step % T) * INNER + channels
        tl.store(xs, values.to(dtype), known & (channels >= 0) & (channels < INNER))
    if (last >= 2 * INNER) & (first < INNER + K):
        tl.store(bs_ptr + (rows * T + step % T) * N + states, values.to(dtype), known & (states >= 0) & (states < N))
        tl.store(c_ptr + rows * N + states - N, values, known & (states >= N) & (states < 2 * N))
    if last >= INNER + K:
        tl.store(dt_ptr + rows * H + heads, _softplus(raw + dt_bias[None, :]), known & (heads >= 0) & (heads < H))


@triton.jit
def in_proj_kernel(
    x_ptr, weight_ptr, squares_ptr, shifted_ptr, ring_ptr, conv_weight_ptr, conv_bias_ptr, dt_bias_ptr, gate_ptr,
    xs_ptr, bs_ptr, c_ptr, dt_ptr, step_ptr, M, T, eps, D: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr,
    N: tl.constexpr, TAPS: tl.constexpr, MODULATED: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr, EARLY: tl.constexpr,
    LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute in_proj of BLOCK_M rows and BLOCK_N columns per program, then `_activate`.

    x is not divided by its rms yet: squares_ptr has the parts of its sums of squares. shifted_ptr: in_proj of the
    modulation's shift, (rows, columns), which is the same at every step.
    """
    K: tl.constexpr = INNER + 2 * N
    COLS: tl.constexpr = INNER + K + H
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Read ahead of `_wait`: the step and the ring, which no kernel of this layer before this one writes.
    _start_next(CHAINED)
    step, channels = tl.load(step_ptr), cols - INNER
    weights = _early(weight_ptr, cols, COLS, D, BLOCK_K, GROUPS, EARLY, LINE, CHAINED)
    known = (channels >= 0) & (channels < K)
    before, newest = _past_taps(ring_ptr, conv_weight_ptr, conv_bias_ptr, rows, channels, known, step, M, K, TAPS)
    dt_bias = tl.load(dt_bias_ptr + channels - K, (channels >= K) & (channels < K + H), 0.0)
    if MODULATED:
        mask = (rows[:, None] < M) & (cols[None, :] < COLS)
        shifted = tl.load(shifted_ptr + rows[:, None] * COLS + cols[None, :], mask, 0.0)
    _wait(CHAINED)
    parts = _parts(squares_ptr, rows, M, PARTS, PARTS_BLOCK)
    raw = _multiply(x_ptr, weight_ptr, weights, rows, cols, M, COLS, D, BLOCK_M, BLOCK_N, BLOCK_K, GROUPS, EARLY)
    raw *= _by_rms(parts, D, eps)
    if MODULATED:
        raw += shifted
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
