"""The end of a layer: residual and next norm; next to them, the newest code's inputs are stored for later steps."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _modulation, _rms, _start_next, _wait
from aim_lightning.sampling.fast.kernels.packed import _pack, _pack_heads, _unit
from aim_lightning.sampling.fast.kernels.past import _decay, _decay_before, _load_columns, _place, _store_columns


@triton.jit
def _store_inputs(
    x_ptr, b_ptr, dt_ptr, xs_ptr, bs_ptr, gs_ptr, decay_ptr, a_log_ptr, step_ptr, row, part, T, INNER: tl.constexpr,
    H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, CHUNK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Store x, L and g of a row's HEADS heads, and B with its first ones; x and B packed where their type is int16.

    in_proj_kernel left them, which has ended: they are packed ahead of `_wait`, and stored when the mixer has ended.
    """
    _, past = _place(step_ptr, CHUNK)
    W: tl.constexpr = HEADS * P
    PADDED: tl.constexpr = triton.next_power_of_2(W)
    PACKED: tl.constexpr = xs_ptr.dtype.element_ty.is_int()
    PAIR: tl.constexpr = 2 if PACKED else 1
    cols, states, pair = tl.arange(0, PADDED), tl.arange(0, N), row * ((T + PAIR - 1) // PAIR) + past // PAIR
    wide, heads = part * W + cols, part * HEADS + tl.minimum(tl.arange(0, PADDED // P), HEADS - 1)
    xs_ptr += pair * INNER + wide
    bs_ptr += pair * N + states
    x_W, b_N = _load_columns(x_ptr + row * INNER + wide, cols, W), tl.load(b_ptr + row * N + states)
    dt = tl.load(dt_ptr + row * H + heads)
    before, a = _decay_before(decay_ptr + row * H, a_log_ptr, heads, past)
    decay = _decay(before, dt * a)
    if PACKED:
        odd, b_N = past % 2 == 1, b_N.to(tl.float32)
        unit_b = tl.maximum(tl.max(_unit(b_N), axis=0), 1e-30)
        x_W, unit = _pack_heads(x_W.to(tl.float32), _load_columns(xs_ptr, cols, W), odd, P)
        b_N, dt = _pack(b_N / unit_b, tl.load(bs_ptr), odd), dt * (unit * unit_b)
    g = tl.log(dt).to(decay.dtype) - decay
    _wait(CHAINED)
    _store_columns(xs_ptr, x_W.to(xs_ptr.dtype.element_ty), cols, W)
    tl.store(bs_ptr, b_N.to(bs_ptr.dtype.element_ty), mask=part + 0 * states == 0)
    once = tl.arange(0, PADDED // P) < HEADS
    tl.store(decay_ptr + row * H + heads, decay, once)
    tl.store(gs_ptr + (row * H + heads) * T + past, g, once)


@triton.jit
def _advance(
    row, out_ptr, squares_ptr, residual_ptr, gate_ptr, weight_ptr, rows_ptr, final_weight_ptr, h_ptr, D, INNER,
    eps, M, GATE_ROWS: tl.constexpr, ROWS: tl.constexpr, MODULATED: tl.constexpr, FINAL: tl.constexpr,
    PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Add gate * (mixer output / rms) to the residual, then apply the next norm; the squares are the mixer kernel's.

    FINAL: norm_f first, then the final layer's norm.
    """
    cols = tl.arange(0, BLOCK)
    mask = cols < D
    residual = tl.load(residual_ptr + row * D + cols, mask, 0.0)
    weight = tl.load(weight_ptr + cols, mask, 0.0).to(tl.float32)
    shift, scale = _modulation(rows_ptr + row * ROWS * D, D, cols, mask, MODULATED)
    if MODULATED:
        gate = tl.load(gate_ptr + row * GATE_ROWS * D + 2 * D + cols, mask, 0.0).to(tl.float32)
    _wait(CHAINED)
    parts = tl.arange(0, PARTS_BLOCK)
    squares = tl.sum(tl.load(squares_ptr + row * PARTS + parts, parts < PARTS, 0.0), axis=0)
    x = tl.load(out_ptr + row * D + cols, mask, 0.0).to(tl.float32)
    for part in tl.static_range(1, SPLIT):
        x += tl.load(out_ptr + (part * M + row) * D + cols, mask, 0.0).to(tl.float32)
    # The gated norm's division, which commutes with out_proj: it is one number per row.
    x *= tl.rsqrt(squares / INNER + eps)
    if MODULATED:
        x *= gate
    x += residual
    tl.store(residual_ptr + row * D + cols, x, mask)
    if FINAL:
        x = x * _rms(x, D, eps) * tl.load(final_weight_ptr + cols, mask, 0.0).to(tl.float32)
    h = x * _rms(x, D, eps) * weight * (1 + scale) + shift
    tl.store(h_ptr + row * D + cols, h.to(h_ptr.dtype.element_ty), mask)


@triton.jit
def advance_kernel(
    out_ptr, squares_ptr, residual_ptr, gate_ptr, weight_ptr, rows_ptr, final_weight_ptr, h_ptr, x_ptr, b_ptr, dt_ptr,
    xs_ptr, bs_ptr, gs_ptr, decay_ptr, a_log_ptr, step_ptr, D, eps, M, T, GATE_ROWS: tl.constexpr, ROWS: tl.constexpr,
    MODULATED: tl.constexpr, FINAL: tl.constexpr, PARTS: tl.constexpr, PARTS_BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr,
    CHUNK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Run `_advance` in each row's first program, `_store_inputs` of HEADS heads in every other one.

    HEADS 0, for the recurrence, stores nothing.
    """
    _start_next(CHAINED)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if part == 0:
        _advance(
            row, out_ptr, squares_ptr, residual_ptr, gate_ptr, weight_ptr, rows_ptr, final_weight_ptr, h_ptr, D, INNER,
            eps, M, GATE_ROWS, ROWS, MODULATED, FINAL, PARTS, PARTS_BLOCK, SPLIT, BLOCK, CHAINED,
        )  # fmt: skip
    elif HEADS > 0:
        _store_inputs(
            x_ptr, b_ptr, dt_ptr, xs_ptr, bs_ptr, gs_ptr, decay_ptr, a_log_ptr, step_ptr, row, part - 1, T, INNER, H, P,
            N, HEADS, CHUNK, CHAINED,
        )  # fmt: skip
