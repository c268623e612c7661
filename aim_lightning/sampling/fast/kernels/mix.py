"""The mixer at one step, in its dual form over the stored inputs."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _prefetch, _start_next, _wait


@triton.jit
def _block(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, states, T, INNER: tl.constexpr, N: tl.constexpr):
    """Stored inputs of some past codes: x_SW, b_SN, g_SH; zero weight for codes to come."""
    known = past[:, None] < step
    x_SW = tl.load(xs_ptr + past[:, None] * INNER + wide[None, :], known, 0.0)
    b_SN = tl.load(bs_ptr + past[:, None] * N + states[None, :], known, 0.0)
    g_SH = tl.load(gs_ptr + heads[None, :] * T + past[:, None], known, float("-inf"))
    return x_SW, b_SN, g_SH


@triton.jit
def mix_kernel(
    gate_ptr, xs_ptr, bs_ptr, gs_ptr, decay_ptr, c_ptr, dt_ptr, a_log_ptr, d_ptr, norm_ptr, y_ptr, squares_ptr,
    step_ptr, T, INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr,
    STEPS: tl.constexpr, AHEAD: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Dual form over the stored inputs, skip, gate, norm weight; one program a row and HEADS heads.

    The norm itself needs the whole row: its sum of squares leaves in parts, and `advance_kernel` divides by it.

    y_t = sum over s <= t of exp(L_t - L_s) dt_s (C_t . B_s) x_s, L the running sum of dt A. Stored for each code: x, B
    (by `project_kernel`, this step's too), and g = log dt - L, so that a weight is exp(L_t + g_s). The state itself is
    never formed. The first block of the past is read before the kernel before has ended, each other one ahead of use;
    AHEAD steps are on their way to the cache by then.
    """
    row, part, step = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.load(step_ptr)
    heads, states = part * HEADS + tl.arange(0, HEADS), tl.arange(0, N)
    wide = part * HEADS * P + tl.arange(0, HEADS * P)
    wide_HP = heads[:, None] * P + tl.arange(0, P)[None, :]
    # This row's memory: offsets within it are small, those over all rows may pass 2^31.
    xs_ptr, bs_ptr, gs_ptr = xs_ptr + row * T * INNER, bs_ptr + row * T * N, gs_ptr + row * H * T
    past = tl.arange(0, STEPS)
    x_SW, b_SN, g_SH = _block(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, states, T, INNER, N)
    decay = tl.load(decay_ptr + row * H + heads, mask=step + 0 * heads > 0, other=0.0)
    a, skip = tl.exp(tl.load(a_log_ptr + heads)), tl.load(d_ptr + heads)
    if CHAINED:
        for first in range(STEPS, tl.minimum(step, AHEAD), STEPS):
            lines = tl.minimum(first + past, step - 1)[:, None] * INNER + (heads * P)[None, :]
            _prefetch(xs_ptr + lines)
    _wait(CHAINED)
    _start_next(CHAINED)

    c, b = tl.load(c_ptr + row * N + states), tl.load(bs_ptr + step * N + states).to(tl.float32)
    dt = tl.load(dt_ptr + row * H + heads)
    decay -= (dt * a).to(decay_ptr.dtype.element_ty)
    past_SHP = tl.zeros((STEPS, HEADS, P), tl.float32)
    for _ in range(0, step, STEPS):
        past += STEPS
        next_x, next_b, next_g = _block(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, states, T, INNER, N)
        scores_S = tl.sum(b_SN.to(tl.float32) * c[None, :], axis=1)
        weight_SH = tl.exp((decay[None, :] + g_SH).to(tl.float32)) * scores_S[:, None]
        past_SHP += weight_SH[:, :, None] * tl.reshape(x_SW, (STEPS, HEADS, P)).to(tl.float32)
        x_SW, b_SN, g_SH = next_x, next_b, next_g
    x_HP = tl.load(xs_ptr + step * INNER + wide_HP).to(tl.float32)
    y_HP = tl.sum(past_SHP, axis=0) + x_HP * (dt * tl.sum(b * c, axis=0) + skip)[:, None]
    gated_HP = y_HP * tl.load(gate_ptr + row * INNER + wide_HP).to(tl.float32)
    y_HP = gated_HP * tl.load(norm_ptr + wide_HP).to(tl.float32)
    tl.store(y_ptr + row * INNER + wide_HP, y_HP.to(y_ptr.dtype.element_ty))
    tl.store(squares_ptr + row * (H // HEADS) + part, tl.sum(tl.sum(gated_HP * gated_HP, axis=1), axis=0))
    tl.store(decay_ptr + row * H + heads, decay)
    tl.store(gs_ptr + heads * T + step, tl.log(dt).to(decay_ptr.dtype.element_ty) - decay)
