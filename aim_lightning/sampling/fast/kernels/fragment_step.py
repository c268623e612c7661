"""The mixer's step in its dual form with past codes in registers (bfloat16, near 16 images).

Before the previous kernel has ended, a program loads B of up to STEPS past codes, x and exponents of their first half,
and half of the state at a chunk's end (fragments.py). The other halves are loaded after it. `mixer_kernel` computes the
same from blocks in shared memory, for any batch and type.
"""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _start_next, _wait
from aim_lightning.sampling.fast.kernels.fragments import (
    _b_fragments,
    _decay_fragments,
    _in_order_of_x,
    _load_b,
    _load_exponents,
    _load_in_order_of_b,
    _load_state,
    _load_x,
    _state_fragments,
    _x_fragments,
)
from aim_lightning.sampling.fast.kernels.mixer_step import _finish
from aim_lightning.sampling.fast.kernels.packed import OFFSET
from aim_lightning.sampling.fast.kernels.past import _fetch, _fetch_ahead, _load_columns, _place


@triton.jit
def fragment_mixer_kernel(
    gate_ptr, x_ptr, b_ptr, c_ptr, dt_ptr, xs_ptr, bs_ptr, gs_ptr, decay_ptr, state_ptr, a_log_ptr, d_ptr, norm_ptr,
    y_ptr, squares_ptr, step_ptr, T, INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    HEADS: tl.constexpr, STEPS: tl.constexpr, CHUNK: tl.constexpr, AHEAD: tl.constexpr, AHEAD_B: tl.constexpr,
    LINE: tl.constexpr, CHAINED: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """Compute one step as `mixer_kernel` does; STEPS: past codes of a span; MORE: T may exceed it."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    step, past = _place(step_ptr, CHUNK)
    W: tl.constexpr = HEADS * P
    R: tl.constexpr = 8 if HEADS <= 8 else 16
    cols = tl.arange(0, triton.next_power_of_2(W))
    wide = part * W + cols
    # This row's memory: offsets within it are small, those over all rows may pass 2^31.
    origin = row * ((T + 1) // 2)
    xs_ptr, bs_ptr, gs_ptr = xs_ptr + origin * INNER, bs_ptr + origin * N, gs_ptr + row * H * T
    decay_ptr, state_ptr, c_ptr = decay_ptr + row * H, state_ptr + row * N * INNER, c_ptr + row * N
    if CHAINED:
        BLOCK: tl.constexpr = min(STEPS, 128)
        _fetch_ahead(xs_ptr, bs_ptr, past, part, H // HEADS, INNER, N, W, BLOCK, AHEAD, AHEAD_B, LINE, STEPS // 2)
    stored = xs_ptr, bs_ptr, gs_ptr, decay_ptr
    span = _load_span(stored, 0, past, part, T, INNER, N, W, HEADS, R, STEPS)
    a_W = tl.exp(_load_columns(a_log_ptr + wide // P, cols, W))
    sums_QMR = tl.zeros((span[0].shape[2], 8 * span[0].shape[1], R), tl.float32)
    if CHUNK:
        # Before the first chunk's end, the state is not used: it may be anything.
        STATES: tl.constexpr = N // 2 if N >= 64 else N
        state = _load_state(state_ptr, part, INNER, W, STATES)
        if CHAINED and AHEAD > 0:
            _fetch(state_ptr, STATES, N, part * W, INNER, W, 32, LINE)
    skip_W, norm_W = _load_columns(d_ptr + wide // P, cols, W), _load_columns(norm_ptr + wide, cols, W).to(tl.float32)
    _wait(CHAINED)
    _start_next(CHAINED)

    c_N, b_N = _load_in_order_of_b(c_ptr, N), _load_in_order_of_b(b_ptr + row * N, N).to(tl.float32)
    gate_W = _load_columns(gate_ptr + row * INNER + wide, cols, W).to(tl.float32)
    dt_W = _load_columns(dt_ptr + row * H + wide // P, cols, W)
    x_W = _load_columns(x_ptr + row * INNER + wide, cols, W).to(tl.float32)
    if CHUNK:  # noqa: SIM102 - one condition is a constant, the other is not
        if step >= CHUNK:
            sums_QMR = _state_sums(sums_QMR, state, state_ptr, c_ptr, decay_ptr, past, part, INNER, N, W, HEADS)
    sums_QMR = _past_sums(
        sums_QMR, span, stored, c_N.to(tl.bfloat16), past, part, T, INNER, N, W, HEADS, R, STEPS, MORE
    )
    # The weights have L of the previous code: the newest code's decay is a factor of the sum.
    past_W = tl.exp(-dt_W * a_W) * tl.gather(_heads_columns(sums_QMR, P), cols, 0)
    score = tl.sum(b_N * c_N, axis=0)
    _finish(
        past_W, score, x_W, dt_W, skip_W, gate_W, norm_W, y_ptr + row * INNER + wide,
        squares_ptr + row * (H // HEADS) + part, cols, W,
    )  # fmt: skip


@triton.jit
def _load_span(
    stored, first, past, part, T, INNER: tl.constexpr, N: tl.constexpr, W: tl.constexpr, HEADS: tl.constexpr,
    R: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Load B of STEPS codes, and x and exponents of their first half: those of all take too many registers."""
    xs_ptr, bs_ptr, gs_ptr, decay_ptr = stored
    x = _load_x(xs_ptr, first, past, part, INNER, W, STEPS // 2)
    b = _load_b(bs_ptr, first, past, N, STEPS)
    return x, b, _load_exponents(gs_ptr, decay_ptr, first, past, part, T, HEADS, R, STEPS // 2)


@triton.jit
def _past_sums(
    sums_QMR, span, stored, c_N, past, part, T, INNER: tl.constexpr, N: tl.constexpr, W: tl.constexpr,
    HEADS: tl.constexpr, R: tl.constexpr, STEPS: tl.constexpr, MORE: tl.constexpr,
):  # fmt: skip
    """Add the past codes to the sums of each column by each head's weights; `span` has the first STEPS."""
    HALF: tl.constexpr = STEPS // 2
    total_Q16R = tl.zeros((sums_QMR.shape[0], 16, R), tl.float32)
    x, b, exponents = span
    # A loop of one iteration where all codes are in the first span.
    for first in tl.range(0, past if MORE else 1, STEPS, num_stages=1):
        second_x = _load_x(stored[0], first + HALF, past, part, INNER, W, HALF)
        second_exponents = _load_exponents(stored[2], stored[3], first + HALF, past, part, T, HEADS, R, HALF)
        scores, second_scores = _scores(b, c_N, N, R)
        sums_QMR, total_Q16R = _add(sums_QMR, total_Q16R, _weights(scores, exponents), x)
        if past > first + HALF:
            sums_QMR, total_Q16R = _add(sums_QMR, total_Q16R, _weights(second_scores, second_exponents), second_x)
        if MORE:
            x, b, exponents = _load_span(stored, first + STEPS, past, part, T, INNER, N, W, HEADS, R, STEPS)
    # All rows of the total are equal. Each thread has those of its own sums.
    shape: tl.constexpr = (sums_QMR.shape[0], sums_QMR.shape[1] // 16, 16, R)
    return tl.reshape(tl.reshape(sums_QMR, shape) - total_Q16R[:, None, :, :] * OFFSET, sums_QMR.shape)


@triton.jit
def _scores(b, c_N, N: tl.constexpr, R: tl.constexpr):
    """Return C B^T of the two halves of codes, (V, 8 pairs, R, 2 codes) each, float32."""
    V: tl.constexpr = b.shape[2]
    c_VNR = tl.broadcast_to(c_N[None, :, None], (V, N, R))
    # The sum of C by a product, in all rows: a reduction would take barriers.
    offset = tl.dot(tl.full((V, 16, N), 1.0, tl.float32).to(tl.bfloat16), c_VNR) * OFFSET
    scores = tl.join(tl.dot(_b_fragments(b, 0, N), c_VNR) - offset, tl.dot(_b_fragments(b, 1, N), c_VNR) - offset)
    return tl.split(tl.permute(tl.reshape(scores, (V, 2, 8, R, 2)), (0, 2, 3, 4, 1)))


@triton.jit
def _weights(scores, exponents):
    """Return the weights C B^T exp(L + g) in the codes' order, (codes, R), bfloat16."""
    V: tl.constexpr = scores.shape[0]
    weights = (_decay_fragments(exponents) * scores).to(tl.bfloat16)
    return tl.reshape(tl.permute(weights, (0, 1, 3, 2)), (V * 16, scores.shape[2]))


@triton.jit
def _add(sums_QMR, total_Q16R, weights_SR, x):
    """Add the product of weights and x to the sums, and the weights to their total."""
    Q: tl.constexpr = sums_QMR.shape[0]
    S: tl.constexpr = weights_SR.shape[0]
    weights_QSR = tl.broadcast_to(_in_order_of_x(weights_SR)[None, :, :], (Q, S, weights_SR.shape[1]))
    total_Q16R = tl.dot(tl.full((Q, 16, S), 1.0, tl.float32).to(tl.bfloat16), weights_QSR, total_Q16R)
    return tl.dot(_x_fragments(x), weights_QSR, sums_QMR), total_Q16R


@triton.jit
def _heads_columns(sums_QMR, P: tl.constexpr):
    """Return each head's columns of its own sums, (columns)."""
    Q: tl.constexpr = sums_QMR.shape[0]
    G: tl.constexpr = sums_QMR.shape[1] // 8
    index = tl.arange(0, 8 * G)  # column of 8, then group
    head_QM = (tl.arange(0, Q)[:, None] * (8 * G) + (index % G * 8 + index // G)[None, :]) // P
    own = head_QM[:, :, None] == tl.arange(0, sums_QMR.shape[2])[None, None, :]
    sums_QM = tl.sum(tl.where(own, sums_QMR, 0.0), axis=2)
    return tl.reshape(tl.permute(tl.reshape(sums_QM, (Q, 8, G)), (0, 2, 1)), (Q * 8 * G,))


@triton.jit
def _state_sums(
    sums_QMR, state, state_ptr, c_ptr, decay_ptr, past, part, INNER: tl.constexpr, N: tl.constexpr, W: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """Return exp(L) C S with L of the previous code, added to sums of zero; `state` has the first rows of S."""
    R: tl.constexpr = sums_QMR.shape[2]
    STATES: tl.constexpr = 4 * state.shape[3]
    sums_QMR = _add_state(sums_QMR, state, c_ptr)
    if STATES < N:
        rest = _load_state(state_ptr + STATES * INNER, part, INNER, W, STATES)
        sums_QMR = _add_state(sums_QMR, rest, c_ptr + STATES)
    head = part * HEADS + tl.minimum(tl.arange(0, R), HEADS - 1)
    before_R = tl.load(decay_ptr + head, (head >= 0) & (past > 0), 0.0)
    return sums_QMR * tl.exp(before_R.to(tl.float32))[None, None, :]


@triton.jit
def _add_state(sums_QMR, state, c_ptr):
    """Add C S for the loaded rows of the state S."""
    fragments = _state_fragments(state)
    c_S = _load_in_order_of_b(c_ptr, fragments.shape[2]).to(state.dtype)
    shape: tl.constexpr = (fragments.shape[0], fragments.shape[2], sums_QMR.shape[2])
    return tl.dot(fragments, tl.broadcast_to(c_S[None, :, None], shape), sums_QMR)
