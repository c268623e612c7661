"""The mixer at one step: in its dual form, a sum over the stored inputs of past codes, or by the recurrence."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _start_next, _wait
from aim_lightning.sampling.fast.kernels.past import (
    _block,
    _block_of_products,
    _fetch_ahead,
    _load_columns,
    _past_by_products,
    _past_by_sums,
    _store_columns,
)


@triton.jit
def mixer_kernel(
    gate_ptr, xs_ptr, bs_ptr, gs_ptr, decay_ptr, c_ptr, dt_ptr, a_log_ptr, d_ptr, norm_ptr, y_ptr, squares_ptr,
    step_ptr, T, INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr,
    STEPS: tl.constexpr, PRODUCTS: tl.constexpr, FIRST: tl.constexpr, AHEAD: tl.constexpr, AHEAD_B: tl.constexpr,
    LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute one step in the dual form: sum over stored inputs, skip, gate, norm weight.

    One program per row and HEADS heads, 16 at most. The norm itself needs the complete row: its sum of squares leaves
    in parts, and `advance_kernel` divides by it.

    y_t = sum over s <= t of exp(L_t - L_s) dt_s (C_t . B_s) x_s, L the running sum of dt A. Stored for each code: x, B
    (by `in_proj_kernel`, this step's too), and g = log dt - L, so that a weight is exp(L_t + g_s). The state itself is
    never formed. PRODUCTS: on tensor cores. Before the previous kernel has ended, x of the last AHEAD codes and B of
    the last AHEAD_B (a share per program of a row) are prefetched into the cache, and the inputs of the first FIRST
    blocks of STEPS codes are loaded.
    """
    row, part, step = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.load(step_ptr)
    W: tl.constexpr = HEADS * P
    PADDED: tl.constexpr = triton.next_power_of_2(W)
    ROWS: tl.constexpr = 16 if PRODUCTS else PADDED // P
    cols, states = tl.arange(0, PADDED), tl.arange(0, N)
    wide = part * W + cols
    heads = part * HEADS + tl.minimum(tl.arange(0, ROWS), HEADS - 1)  # rows beyond HEADS repeat the last head
    # This row's memory: offsets within it are small, those over all rows may pass 2^31.
    xs_ptr, bs_ptr, gs_ptr = xs_ptr + row * T * INNER, bs_ptr + row * T * N, gs_ptr + row * H * T
    decay_ptr, dt_ptr = decay_ptr + row * H, dt_ptr + row * H
    blocks = ()
    for i in tl.static_range(FIRST):
        past = i * STEPS + tl.arange(0, STEPS)
        if PRODUCTS:
            blocks += _block_of_products(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER, N, W)
        else:
            blocks += _block(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER, N, W)
    LOADED: tl.constexpr = FIRST * STEPS  # codes that are in registers already
    if CHAINED and AHEAD > 0:
        _fetch_ahead(xs_ptr, tl.maximum(step - AHEAD, LOADED), step, part * W, INNER, W, STEPS, LINE)
    if CHAINED and AHEAD_B > 0:
        SHARE: tl.constexpr = (AHEAD_B * HEADS + H - 1) // H
        begin = tl.maximum(step - AHEAD_B, LOADED) + part * SHARE
        _fetch_ahead(bs_ptr, begin, tl.minimum(begin + SHARE, step), 0, N, N, STEPS, LINE)
    before = tl.load(decay_ptr + heads, mask=step + 0 * heads > 0, other=0.0)
    a, skip_W = tl.exp(tl.load(a_log_ptr + heads)), _load_columns(d_ptr + wide // P, cols, W)
    norm_W = _load_columns(norm_ptr + wide, cols, W).to(tl.float32)
    _wait(CHAINED)
    _start_next(CHAINED)

    c, newest_b = tl.load(c_ptr + row * N + states), tl.load(bs_ptr + step * N + states).to(tl.float32)
    dt = tl.load(dt_ptr + heads)
    # L of this step; in float64 where a float32 running sum would lose digits (buffers.exponent_type).
    decay = before - (dt * a).to(decay_ptr.dtype.element_ty)
    gate_W = _load_columns(gate_ptr + row * INNER + wide, cols, W).to(tl.float32)
    dt_W = _load_columns(dt_ptr + wide // P, cols, W)
    x_W = _load_columns(xs_ptr + step * INNER + wide, cols, W).to(tl.float32)
    if PRODUCTS:
        past_W = _past_by_products(
            blocks, xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER, N, W, P, STEPS, FIRST
        )
    else:
        past_W = _past_by_sums(
            blocks, xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER, N, W, P, STEPS, FIRST
        )
    # The newest code has weight exp(0): its B, C and dt, and the skip D, are factors of its x.
    newest_W = (dt_W * tl.sum(newest_b * c, axis=0) + skip_W) * x_W
    # Without the division by the rms, which needs the other programs of the row.
    gated_W = (past_W + newest_W) * gate_W
    _store_columns(y_ptr + row * INNER + wide, (gated_W * norm_W).to(y_ptr.dtype.element_ty), cols, W)
    tl.store(squares_ptr + row * (H // HEADS) + part, tl.sum(gated_W * gated_W, axis=0))
    once = tl.arange(0, ROWS) < HEADS
    tl.store(decay_ptr + heads, decay, once)
    tl.store(gs_ptr + heads * T + step, tl.log(dt).to(decay_ptr.dtype.element_ty) - decay, once)


@triton.jit
def state_kernel(
    gate_ptr, states_ptr, x_ptr, b_ptr, c_ptr, dt_ptr, a_log_ptr, d_ptr, norm_ptr, y_ptr, squares_ptr, step_ptr,
    INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute one step by the recurrence, then skip, gate and norm weight; outputs as `mixer_kernel`.

    One program per row and COLUMNS of one head. The state (rows, INNER, N) is read before the previous kernel ends; it
    is updated in float32.
    """
    row, part, step = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.load(step_ptr)
    cols, states, head = part * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, N), part * COLUMNS // P
    places = states_ptr + row * INNER * N + cols[:, None] * N + states[None, :]
    state = tl.load(places, (step > 0) & (cols[:, None] >= 0), 0.0).to(tl.float32)  # zero before the first code
    a, skip = tl.exp(tl.load(a_log_ptr + head)), tl.load(d_ptr + head)
    norm = tl.load(norm_ptr + cols).to(tl.float32)
    _wait(CHAINED)
    _start_next(CHAINED)

    dt, c = tl.load(dt_ptr + row * H + head), tl.load(c_ptr + row * N + states)
    x, b = tl.load(x_ptr + row * INNER + cols).to(tl.float32), tl.load(b_ptr + row * N + states).to(tl.float32)
    gate = tl.load(gate_ptr + row * INNER + cols).to(tl.float32)
    state = state * tl.exp(-dt * a) + (dt * x)[:, None] * b[None, :]
    gated = (tl.sum(state * c[None, :], axis=1) + skip * x) * gate
    tl.store(y_ptr + row * INNER + cols, (gated * norm).to(y_ptr.dtype.element_ty))
    tl.store(squares_ptr + row * (INNER // COLUMNS) + part, tl.sum(gated * gated, axis=0))
    tl.store(places, state.to(states_ptr.dtype.element_ty))
