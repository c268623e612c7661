"""The mixer at one step, in its dual form over the stored inputs."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _silu, _softplus


@triton.jit
def _conv(zx_ptr, ring_ptr, weight_ptr, bias_ptr, channels, step, row, M, K, TAPS: tl.constexpr):
    """Causal convolution and SiLU of some channels; returns the raw input too, which belongs into the ring."""
    raw = tl.load(zx_ptr + channels)
    y = tl.load(bias_ptr + channels).to(tl.float32)
    y += raw.to(tl.float32) * tl.load(weight_ptr + channels * TAPS + TAPS - 1).to(tl.float32)
    for back in tl.static_range(1, TAPS):
        slot = (step - back + TAPS) % TAPS
        past = tl.load(ring_ptr + (slot * M + row) * K + channels, mask=step + 0 * channels >= back, other=0.0)
        y += past.to(tl.float32) * tl.load(weight_ptr + channels * TAPS + TAPS - 1 - back).to(tl.float32)
    return _silu(y), raw


@triton.jit
def mix_kernel(
    zxbcdt_ptr, ring_ptr, xs_ptr, bs_ptr, gs_ptr, decay_ptr, conv_weight_ptr, conv_bias_ptr, dt_bias_ptr, a_log_ptr,
    d_ptr, norm_ptr, y_ptr, squares_ptr, step_ptr, M, T, ROW, INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    N: tl.constexpr, HEADS: tl.constexpr, STEPS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Convolution, dual form over the stored inputs, skip, gate, norm weight; one program a row and HEADS heads.

    The norm itself needs the whole row: its sum of squares leaves in parts, and `advance_kernel` divides by it.

    y_t = sum over s <= t of exp(L_t - L_s) dt_s (C_t . B_s) x_s, L the running sum of dt A. Stored for each past code:
    x, B, and g = log dt - L, so that a weight is exp(L_t + g_s). The state itself is never formed.
    """
    row, part, step = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.load(step_ptr)
    K: tl.constexpr = INNER + 2 * N
    zx = zxbcdt_ptr + row * ROW + INNER
    heads = part * HEADS + tl.arange(0, HEADS)
    wide_HP = heads[:, None] * P + tl.arange(0, P)[None, :]
    states = tl.arange(0, N)
    # This row's memory: offsets within it are small, those over all rows may pass 2^31.
    xs_ptr, bs_ptr, gs_ptr = xs_ptr + row * T * INNER, bs_ptr + row * T * N, gs_ptr + row * H * T
    x_HP, raw_x = _conv(zx, ring_ptr, conv_weight_ptr, conv_bias_ptr, wide_HP, step, row, M, K, TAPS)
    b, raw_b = _conv(zx, ring_ptr, conv_weight_ptr, conv_bias_ptr, INNER + states, step, row, M, K, TAPS)
    c, raw_c = _conv(zx, ring_ptr, conv_weight_ptr, conv_bias_ptr, INNER + N + states, step, row, M, K, TAPS)
    dt = _softplus(tl.load(zx + K + heads).to(tl.float32) + tl.load(dt_bias_ptr + heads))
    decay = tl.load(decay_ptr + row * H + heads, mask=step + 0 * heads > 0, other=0.0)
    decay -= (dt * tl.exp(tl.load(a_log_ptr + heads))).to(decay_ptr.dtype.element_ty)

    past_SHP = tl.zeros((STEPS, HEADS, P), tl.float32)
    for first in range(0, step, STEPS):
        past = first + tl.arange(0, STEPS)
        known = past < step
        b_SN = tl.load(bs_ptr + past[:, None] * N + states[None, :], known[:, None], 0.0).to(tl.float32)
        scores_S = tl.sum(b_SN * c[None, :], axis=1)
        g_SH = tl.load(gs_ptr + heads[None, :] * T + past[:, None], known[:, None], float("-inf"))
        weight_SH = tl.exp((decay[None, :] + g_SH).to(tl.float32)) * scores_S[:, None]
        x_SHP = tl.load(xs_ptr + past[:, None, None] * INNER + wide_HP[None], known[:, None, None], 0.0)
        past_SHP += weight_SH[:, :, None] * x_SHP.to(tl.float32)
    y_HP = tl.sum(past_SHP, axis=0) + x_HP * (dt * tl.sum(b * c, axis=0) + tl.load(d_ptr + heads))[:, None]
    gated_HP = y_HP * _silu(tl.load(zxbcdt_ptr + row * ROW + wide_HP).to(tl.float32))
    y_HP = gated_HP * tl.load(norm_ptr + wide_HP).to(tl.float32)
    tl.store(y_ptr + row * INNER + wide_HP, y_HP.to(y_ptr.dtype.element_ty))
    tl.store(squares_ptr + row * (H // HEADS) + part, tl.sum(tl.sum(gated_HP * gated_HP, axis=1), axis=0))

    slot = ring_ptr + ((step % TAPS) * M + row) * K
    tl.store(slot + wide_HP, raw_x)
    tl.store(xs_ptr + step * INNER + wide_HP, x_HP.to(xs_ptr.dtype.element_ty))
    tl.store(decay_ptr + row * H + heads, decay)
    tl.store(gs_ptr + heads * T + step, tl.log(dt).to(decay_ptr.dtype.element_ty) - decay)
    if part == 0:
        tl.store(slot + INNER + states, raw_b)
        tl.store(slot + INNER + N + states, raw_c)
        tl.store(bs_ptr + step * N + states, b.to(bs_ptr.dtype.element_ty))
