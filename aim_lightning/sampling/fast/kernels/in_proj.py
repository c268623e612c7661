"""The input of the mixer: in_proj, SiLU of z, the causal convolution of x, B and C, and softplus of dt."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _silu, _softplus, _start_next, _wait
from aim_lightning.sampling.fast.kernels.products import _load_factor, _prefetch_weights, _product, _product_with


@triton.jit
def _past_taps(ring_ptr, weight_ptr, bias_ptr, rows, channels, convolved, step, M, K, TAPS: tl.constexpr):
    """Return (the sum of bias and all taps of the causal convolution but the newest, the newest tap's weight).

    Columns that are not `convolved` get (0, 1), so that one formula serves all columns.
    """
    before = tl.load(bias_ptr + channels, convolved, 0.0)[None, :]
    for back in tl.static_range(1, TAPS):
        # The ring holds the last TAPS raw inputs; before the first code they count as zero.
        slot = (step - back + TAPS) % TAPS
        valid = (rows[:, None] < M) & convolved[None, :] & (step >= back)
        past = tl.load(ring_ptr + (slot * M + rows[:, None]) * K + channels[None, :], valid, 0.0)
        before += past.to(tl.float32) * tl.load(weight_ptr + (TAPS - 1 - back) * K + channels, convolved, 0.0)[None, :]
    return before, tl.load(weight_ptr + (TAPS - 1) * K + channels, convolved, 1.0)[None, :]


@triton.jit
def _activate(
    raw, before, newest, dt_bias, gate_ptr, mixer_x_ptr, b_ptr, c_ptr, dt_ptr, ring_ptr, rows, cols, first, step,
    M, INNER: tl.constexpr, H: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store BLOCK_N columns of in_proj's result (z, x, B, C, dt side by side) in the mixer's buffers.

    first: the first of `cols`. A program skips the buffers that none of its columns belong to.
    """
    K: tl.constexpr = INNER + 2 * N
    rows, cols = rows[:, None], cols[None, :]
    last, valid = first + BLOCK_N - 1, rows < M
    dtype = mixer_x_ptr.dtype.element_ty
    channels, states, heads = cols - INNER, cols - 2 * INNER, cols - INNER - K
    values = _silu(before + raw * newest)
    if first < INNER:
        tl.store(gate_ptr + rows * INNER + cols, values.to(dtype), valid & (cols < INNER))
    if (last >= INNER) & (first < INNER + K):
        ring = ring_ptr + ((step % TAPS) * M + rows) * K + channels
        tl.store(ring, raw.to(dtype), valid & (channels >= 0) & (channels < K))
    if (last >= INNER) & (first < 2 * INNER):
        tl.store(mixer_x_ptr + rows * INNER + channels, values.to(dtype), valid & (channels >= 0) & (channels < INNER))
    if (last >= 2 * INNER) & (first < INNER + K):
        tl.store(b_ptr + rows * N + states, values.to(dtype), valid & (states >= 0) & (states < N))
        tl.store(c_ptr + rows * N + states - N, values, valid & (states >= N) & (states < 2 * N))
    if last >= INNER + K:
        tl.store(dt_ptr + rows * H + heads, _softplus(raw + dt_bias[None, :]), valid & (heads >= 0) & (heads < H))


@triton.jit
def in_proj_kernel(
    x_ptr, weight_ptr, ring_ptr, conv_weight_ptr, conv_bias_ptr, dt_bias_ptr, gate_ptr, mixer_x_ptr, b_ptr, c_ptr,
    dt_ptr, step_ptr, M, D: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr,
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
        weights = _load_factor(weight_ptr, tl.program_id(0), COLS, 0, D, 1, BLOCK_N, EARLY)
    elif CHAINED:
        _prefetch_weights(weight_ptr, cols, 0, COLS, D, 1, BLOCK_K, LINE)
    convolved = (channels >= 0) & (channels < K)
    before, newest = _past_taps(ring_ptr, conv_weight_ptr, conv_bias_ptr, rows, channels, convolved, step, M, K, TAPS)
    dt_bias = tl.load(dt_bias_ptr + channels - K, (channels >= K) & (channels < K + H), 0.0)
    _wait(CHAINED)
    if EARLY:
        raw = _product_with(weights, x_ptr, tl.program_id(1), M, 0, D, 1, BLOCK_M, BLOCK_N, EARLY)
    else:
        raw = _product(x_ptr, weight_ptr, rows, cols, 0, M, COLS, D, 1, BLOCK_M, BLOCK_N, BLOCK_K)
    _activate(
        raw, before, newest, dt_bias, gate_ptr, mixer_x_ptr, b_ptr, c_ptr, dt_ptr, ring_ptr, rows, cols,
        tl.program_id(0) * BLOCK_N, step, M, INNER, H, N, TAPS, BLOCK_N,
    )  # fmt: skip


@triton.jit
def activate_kernel(
    zxbcdt_ptr, ring_ptr, conv_weight_ptr, conv_bias_ptr, dt_bias_ptr, gate_ptr, mixer_x_ptr, b_ptr, c_ptr, dt_ptr,
    step_ptr, M, INNER: tl.constexpr, H: tl.constexpr, N: tl.constexpr, TAPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Apply `_activate` to a product in memory (float32); one program per row and BLOCK_N columns."""
    K: tl.constexpr = INNER + 2 * N
    COLS: tl.constexpr = INNER + K + H
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1).to(tl.int64) + tl.arange(0, 1)
    step, channels = tl.load(step_ptr), cols - INNER
    convolved = (channels >= 0) & (channels < K)
    before, newest = _past_taps(ring_ptr, conv_weight_ptr, conv_bias_ptr, rows, channels, convolved, step, M, K, TAPS)
    dt_bias = tl.load(dt_bias_ptr + channels - K, (channels >= K) & (channels < K + H), 0.0)
    raw = tl.load(zxbcdt_ptr + rows[:, None] * COLS + cols[None, :], (cols < COLS)[None, :], 0.0).to(tl.float32)
    _activate(
        raw, before, newest, dt_bias, gate_ptr, mixer_x_ptr, b_ptr, c_ptr, dt_ptr, ring_ptr, rows, cols,
        tl.program_id(0) * BLOCK_N, step, M, INNER, H, N, TAPS, BLOCK_N,
    )  # fmt: skip
