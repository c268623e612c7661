"""The mixer at one step: in its dual form, a sum over the stored inputs of past codes, or by the recurrence.

The sum either multiplies and adds, or takes products on tensor cores.
"""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _prefetch, _start_next, _wait


@triton.jit
def _mask(known, cols, W: tl.constexpr):
    """Return the mask of known codes and of a program's columns, which are padded to a power of two."""
    mask = known[:, None]
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
    known = past < step
    x_SW = tl.load(xs_ptr + past[:, None] * INNER + wide[None, :], _mask(known, cols, W), 0.0)
    b_SN = tl.load(bs_ptr + past[:, None] * N + states[None, :], known[:, None], 0.0)
    g_SH = tl.load(gs_ptr + heads[None, :] * T + past[:, None], known[:, None], float("-inf"))
    return x_SW, b_SN, g_SH


@triton.jit
def _past_by_sums(
    blocks, xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Sum over past codes block by block; the next FIRST blocks are loaded while one is summed."""
    past, states = (FIRST - 1) * STEPS + tl.arange(0, STEPS), tl.arange(0, N)
    HEADS: tl.constexpr = cols.shape[0] // P
    past_SHP = tl.zeros((STEPS, HEADS, P), tl.float32)
    for _ in range(0, step, STEPS):
        past += STEPS
        # Loaded before the arithmetic on the current block, so that memory and arithmetic overlap.
        after = _block(xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER, N, W)
        x_SW, b_SN, g_SH = blocks[0], blocks[1], blocks[2]
        scores_S = tl.sum(b_SN.to(tl.float32) * c[None, :], axis=1)
        weight_SH = tl.exp((decay[None, :] + g_SH).to(tl.float32)) * scores_S[:, None]
        past_SHP += weight_SH[:, :, None] * tl.reshape(x_SW, (STEPS, HEADS, P)).to(tl.float32)
        blocks = blocks[3:] + after
    return tl.reshape(tl.sum(past_SHP, axis=0), (HEADS * P,))


@triton.jit
def _block_of_products(
    xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr,
):  # fmt: skip
    """Load the stored inputs in the layout of products: x_SW, b_NS, g_RS."""
    known = past < step
    b_NS = tl.load(bs_ptr + past[None, :] * N + states[:, None], known[None, :], 0.0)
    x_SW = tl.load(xs_ptr + past[:, None] * INNER + wide[None, :], _mask(known, cols, W), 0.0)
    g_RS = tl.load(gs_ptr + heads[:, None] * T + past[None, :], known[None, :], float("-inf"))
    return x_SW, b_NS, g_RS


@triton.jit
def _products(x_SW, b_NS, g_RS, c_RN, decay):
    """Return (C B^T * decay) x, in two products on tensor cores."""
    weight_RS = tl.exp((decay[:, None] + g_RS).to(tl.float32))
    weight_RS *= tl.dot(c_RN, b_NS, input_precision="ieee")
    return tl.dot(weight_RS.to(x_SW.dtype), x_SW, input_precision="ieee")


@triton.jit
def _past_by_products(
    blocks, xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Sum over past codes by two products per block; the first FIRST blocks are loaded already.

    A product has 16 rows, one per head; of a head's row only the head's columns count.
    """
    ROWS: tl.constexpr = heads.shape[0]
    states = tl.arange(0, N)
    c_RN = tl.broadcast_to(c[None, :], (ROWS, N)).to(xs_ptr.dtype.element_ty)
    sums_RW = tl.zeros((ROWS, cols.shape[0]), tl.float32)
    for i in tl.static_range(FIRST):
        sums_RW += _products(blocks[3 * i], blocks[3 * i + 1], blocks[3 * i + 2], c_RN, decay)
    for first in range(FIRST * STEPS, step, STEPS):
        past = first + tl.arange(0, STEPS)
        more_x, more_b, more_g = _block_of_products(
            xs_ptr, bs_ptr, gs_ptr, past, step, heads, wide, cols, states, T, INNER, N, W
        )
        sums_RW += _products(more_x, more_b, more_g, c_RN, decay)
    head_columns = tl.arange(0, ROWS)[:, None] == (cols // P)[None, :]
    return tl.sum(tl.where(head_columns, sums_RW, 0.0), axis=0)


@triton.jit
def _fetch_ahead(
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
def _fetch_vectors(gate_ptr, rows_ptr, norm_ptr, part, D: tl.constexpr, PARTS: tl.constexpr, LINE: tl.constexpr):
    """Prefetch this part's share of the factors of `advance_kernel`: gate, shift, scale, norm weight."""
    LINES: tl.constexpr = (D + LINE - 1) // LINE
    lines = part + PARTS * tl.arange(0, triton.next_power_of_2((LINES + PARTS - 1) // PARTS))
    cols = tl.minimum(lines * LINE, D - 1)
    _prefetch(gate_ptr + 2 * D + cols)
    _prefetch(rows_ptr + cols)
    _prefetch(rows_ptr + D + cols)
    _prefetch(norm_ptr + cols)  # float32: twice as many bytes
    _prefetch(norm_ptr + tl.minimum(lines * LINE + LINE // 2, D - 1))


@triton.jit
def mixer_kernel(
    gate_ptr, xs_ptr, bs_ptr, gs_ptr, decay_ptr, c_ptr, dt_ptr, a_log_ptr, d_ptr, norm_ptr, y_ptr, squares_ptr,
    step_ptr, gate_rows_ptr, next_rows_ptr, next_norm_ptr, T, INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, GATE_ROWS: tl.constexpr, NEXT_ROWS: tl.constexpr, HEADS: tl.constexpr,
    STEPS: tl.constexpr, PRODUCTS: tl.constexpr, FIRST: tl.constexpr, AHEAD: tl.constexpr, AHEAD_B: tl.constexpr,
    VECTORS: tl.constexpr, LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Compute one step in the dual form: sum over stored inputs, skip, gate, norm weight.

    One program per row and HEADS heads, 16 at most. The norm itself needs the complete row: its sum of squares leaves
    in parts, and `advance_kernel` divides by it.

    y_t = sum over s <= t of exp(L_t - L_s) dt_s (C_t . B_s) x_s, L the running sum of dt A. Stored for each code: x, B
    (by `in_proj_kernel`, this step's too), and g = log dt - L, so that a weight is exp(L_t + g_s). The state itself is
    never formed. PRODUCTS: on tensor cores. Before the previous kernel has ended, x of the last AHEAD codes and B of
    the last AHEAD_B (a share per program of a row) are prefetched into the cache; VECTORS: the factors of
    `advance_kernel` too. The inputs of the first FIRST blocks of STEPS codes are loaded by then.
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
    if CHAINED and VECTORS:
        gate_rows, next_rows = gate_rows_ptr + row * GATE_ROWS * D, next_rows_ptr + row * NEXT_ROWS * D
        _fetch_vectors(gate_rows, next_rows, next_norm_ptr, part, D, H // HEADS, LINE)
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
    # The newest code has weight exp(0): its B, C and dt, and the skip D, are factors of its x.
    newest_W = _load_columns(dt_ptr + wide // P, cols, W) * tl.sum(newest_b * c, axis=0) + skip_W
    y_W = newest_W * _load_columns(xs_ptr + step * INNER + wide, cols, W).to(tl.float32)
    if PRODUCTS:
        y_W += _past_by_products(
            blocks, xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER, N, W, P, STEPS, FIRST
        )
    else:
        y_W += _past_by_sums(
            blocks, xs_ptr, bs_ptr, gs_ptr, c, decay, heads, wide, cols, step, T, INNER, N, W, P, STEPS, FIRST
        )
    # Without the division by the rms, which needs the other programs of the row.
    gated_W = y_W * gate_W
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
