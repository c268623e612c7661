"""The mixer at one step: in its dual form, a sum over the stored inputs of past codes, or by the recurrence.

Dual form: y_t = sum over s <= t of exp(L_t - L_s) dt_s (C_t . B_s) x_s, with L the running sum of dt A. Stored for each
code: x, B and g = log dt - L, so that a weight is exp(L_t + g_s). No step forms the state itself. In bfloat16 x and B
are packed to bytes (packed.py). Each head's x has a unit, and B has one; their logarithms are part of g.
Long sequences have a state at the end of every chunk of codes, and the sum is over the codes since then (states.py).
"""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _start_next, _wait
from aim_lightning.sampling.fast.kernels.packed import _of_heads, _packed_step
from aim_lightning.sampling.fast.kernels.past import (
    _decay,
    _decay_before,
    _fetch_ahead,
    _load_columns,
    _past_by_sums,
    _place,
    _store_columns,
)
from aim_lightning.sampling.fast.kernels.states import _from_state


@triton.jit
def mixer_kernel(
    gate_ptr, x_ptr, b_ptr, c_ptr, dt_ptr, xs_ptr, bs_ptr, gs_ptr, decay_ptr, state_ptr, a_log_ptr, d_ptr, norm_ptr,
    y_ptr, squares_ptr, step_ptr, T, INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    HEADS: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr, AHEAD: tl.constexpr, AHEAD_B: tl.constexpr,
    LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute one step in the dual form: sum over stored inputs, skip, gate, norm weight.

    One program per row and HEADS heads, 16 at most. The norm itself needs the complete row: its sum of squares leaves
    in parts, and `advance_kernel` divides by it. Packed x takes part in products on tensor cores.

    CHUNK: codes of a chunk, at whose end there is a state; 0: all past codes are stored.

    Before the previous kernel has ended, x of the last AHEAD codes is prefetched into the cache, and each program of a
    row prefetches a share of the last AHEAD_B codes' B.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    step, past = _place(step_ptr, CHUNK)
    W: tl.constexpr = HEADS * P
    PADDED: tl.constexpr = triton.next_power_of_2(W)
    PACKED: tl.constexpr = xs_ptr.dtype.element_ty.is_int()
    PAIR: tl.constexpr = 2 if PACKED else 1
    ROWS: tl.constexpr = 16 if PACKED else PADDED // P
    cols, states = tl.arange(0, PADDED), tl.arange(0, N)
    wide = part * W + cols
    # Heads beyond HEADS repeat the last one. Products have a row of weights per head, and at least 16 rows.
    heads = part * HEADS + tl.minimum(tl.arange(0, ROWS), HEADS - 1)
    # This row's memory: offsets within it are small, those over all rows may pass 2^31.
    origin = row * ((T + PAIR - 1) // PAIR)
    xs_ptr, bs_ptr, gs_ptr = xs_ptr + origin * INNER, bs_ptr + origin * N, gs_ptr + row * H * T
    decay_ptr, dt_ptr = decay_ptr + row * H, dt_ptr + row * H
    if CHAINED:
        _fetch_ahead(xs_ptr, bs_ptr, past, part, H // HEADS, INNER, N, W, STEPS, AHEAD, AHEAD_B, LINE)
    before, a = _decay_before(decay_ptr, a_log_ptr, heads, past)
    skip_W, norm_W = _load_columns(d_ptr + wide // P, cols, W), _load_columns(norm_ptr + wide, cols, W).to(tl.float32)
    _wait(CHAINED)
    _start_next(CHAINED)

    c, b = tl.load(c_ptr + row * N + states), tl.load(b_ptr + row * N + states).to(tl.float32)
    decay = _decay(before, tl.load(dt_ptr + heads) * a)
    gate_W = _load_columns(gate_ptr + row * INNER + wide, cols, W).to(tl.float32)
    dt_W = _load_columns(dt_ptr + wide // P, cols, W)
    x_W = _load_columns(x_ptr + row * INNER + wide, cols, W).to(tl.float32)
    if CHUNK:
        state_ptr += row * N * INNER
        count = tl.where(step >= CHUNK, N, 0)
        sums_RW = _from_state(state_ptr, c_ptr + row * N, decay, wide, cols, count, INNER, N, W, PACKED)
    else:
        sums_RW = tl.zeros((ROWS, PADDED), tl.float32)
    if PACKED:
        past_W, score = _packed_step(
            sums_RW, xs_ptr, bs_ptr, gs_ptr, b, c, decay, heads, wide, cols, past, T, INNER, N, W, P, STEPS
        )
    else:
        past_W = _past_by_sums(xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, past, T, INNER, N, W, P, STEPS)
        if CHUNK:
            past_W += _of_heads(sums_RW, cols, P)
        score = tl.sum(b * c, axis=0)
    _finish(
        past_W, score, x_W, dt_W, skip_W, gate_W, norm_W, y_ptr + row * INNER + wide,
        squares_ptr + row * (H // HEADS) + part, cols, W,
    )  # fmt: skip


@triton.jit
def _finish(past_W, score, x_W, dt_W, skip_W, gate_W, norm_W, y_ptrs, squares_ptr, cols, W: tl.constexpr):
    """Add the newest code and the skip, multiply by gate and norm weight, and store."""
    # The newest code has weight exp(0): its B, C and dt, and the skip D, are factors of its x.
    newest_W = (dt_W * score + skip_W) * x_W
    # Without the division by the rms, which needs the other programs of the row.
    gated_W = (past_W + newest_W) * gate_W
    _store_columns(y_ptrs, (gated_W * norm_W).to(y_ptrs.dtype.element_ty), cols, W)
    tl.store(squares_ptr, tl.sum(gated_W * gated_W, axis=0))


@triton.jit
def state_kernel(
    gate_ptr, x_ptr, b_ptr, c_ptr, dt_ptr, states_ptr, a_log_ptr, d_ptr, norm_ptr, y_ptr, squares_ptr, step_ptr,
    INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute one step by the recurrence, then skip, gate and norm weight; outputs as `mixer_kernel`.

    One program per row and COLUMNS of one head. The state (rows, INNER, N), float32, is read before the previous kernel
    ends.
    """
    row, part, step = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.load(step_ptr)
    cols, states, head = part * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, N), part * COLUMNS // P
    pointers = states_ptr + row * INNER * N + cols[:, None] * N + states[None, :]
    state = tl.load(pointers, (step > 0) & (cols[:, None] >= 0), 0.0)  # zero before the first code
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
    tl.store(pointers, state)
