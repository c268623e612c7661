"""Gate and residual of the previous branch, RMSNorm and adaLN modulation of the next one, in one pass.

residual += gate * row_scale * raw;  u = RMSNorm(residual) * weight * (1 + scale) + shift.
"""

import triton
import triton.language as tl


@triton.jit
def norm_forward(
    raw, row_scale, gate, residual, weight, shift, scale, new_residual, u, rms,
    length, width, stride_gate, stride_shift, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_ROW_SCALE: tl.constexpr, HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute the forward pass. Grid (images, groups of ROWS rows)."""
    image = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    in_row, in_column = row < length, column < width
    mask = in_row[:, None] & in_column[None, :]
    # 64-bit offsets: images * length * width passes 2^31 for large batches.
    first = image.to(tl.int64) * length
    at = (first + row[:, None]) * width + column[None, :]
    value = tl.load(raw + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_ROW_SCALE:
        value *= tl.load(row_scale + first + row, mask=in_row, other=0.0)[:, None]
    if HAS_GATE:
        value *= tl.load(gate + image * stride_gate + column, mask=in_column, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        value += tl.load(residual + at, mask=mask, other=0.0)
    tl.store(new_residual + at, value, mask=mask)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / width + eps)
    tl.store(rms + first + row, inverse, mask=in_row)
    factor = tl.load(weight + column, mask=in_column, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        factor *= 1.0 + tl.load(scale + image * stride_shift + column, mask=in_column, other=0.0).to(tl.float32)
    y = value * inverse[:, None] * factor[None, :]
    if HAS_SHIFT:
        y += tl.load(shift + image * stride_shift + column, mask=in_column, other=0.0).to(tl.float32)[None, :]
    tl.store(u + at, y.to(u.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward(
    d_new_residual, du, new_residual, rms, weight, scale, raw, row_scale, gate, d_residual, d_raw, d_row_scale, sums,
    length, width, chunk, stride_gate, stride_shift,
    HAS_D_RESIDUAL: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_ROW_SCALE: tl.constexpr, HAS_GATE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute the backward pass; sums (images, chunks, 3, width) are per chunk. Grid (images, chunks of `chunk` rows).

    The three sums over rows are those of du, du * normed and d_residual * row_scale * raw.
    """
    image, part = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, WIDTH)
    in_column = column < width
    factor = tl.load(weight + column, mask=in_column, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        factor *= 1.0 + tl.load(scale + image * stride_shift + column, mask=in_column, other=0.0).to(tl.float32)
    if HAS_GATE:
        gates = tl.load(gate + image * stride_gate + column, mask=in_column, other=0.0).to(tl.float32)
    first = image.to(tl.int64) * length
    sum_u = tl.zeros([WIDTH], tl.float32)
    sum_normed = tl.zeros([WIDTH], tl.float32)
    sum_gate = tl.zeros([WIDTH], tl.float32)
    for start in range(part * chunk, min((part + 1) * chunk, length), ROWS):
        row = start + tl.arange(0, ROWS)
        in_row = row < length
        mask = in_row[:, None] & in_column[None, :]
        at = (first + row[:, None]) * width + column[None, :]
        d = tl.load(du + at, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.load(rms + first + row, mask=in_row, other=0.0)
        normed = tl.load(new_residual + at, mask=mask, other=0.0) * inverse[:, None]
        sum_u += tl.sum(d, 0)
        sum_normed += tl.sum(d * normed, 0)
        d *= factor[None, :]
        total = (d - normed * (tl.sum(d * normed, 1) / width)[:, None]) * inverse[:, None]
        if HAS_D_RESIDUAL:
            total += tl.load(d_new_residual + at, mask=mask, other=0.0)
        if HAS_RESIDUAL:
            tl.store(d_residual + at, total, mask=mask)
        if HAS_GATE or HAS_ROW_SCALE:
            value = tl.load(raw + at, mask=mask, other=0.0).to(tl.float32)
        gated = total
        if HAS_GATE:
            scaled = value
            if HAS_ROW_SCALE:
                scaled *= tl.load(row_scale + first + row, mask=in_row, other=0.0)[:, None]
            sum_gate += tl.sum(total * scaled, 0)
            gated = total * gates[None, :]
        if HAS_ROW_SCALE:
            tl.store(d_row_scale + first + row, tl.sum(gated * value, 1), mask=in_row)
            gated *= tl.load(row_scale + first + row, mask=in_row, other=0.0)[:, None]
        tl.store(d_raw + at, gated.to(d_raw.dtype.element_ty), mask=mask)
    base = sums + (image.to(tl.int64) * tl.num_programs(1) + part) * 3 * width + column
    tl.store(base, sum_u, mask=in_column)
    tl.store(base + width, sum_normed, mask=in_column)
    tl.store(base + 2 * width, sum_gate, mask=in_column)


@triton.jit
def sum_chunks(
    sums, weight, scale, d_shift, d_scale, d_gate, d_weight, chunks, width, stride_shift,
    HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add the chunks of an image in order; d_weight (images, width) is still to be summed. Grid (images, columns)."""
    image = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    sum_u = tl.zeros([COLUMNS], tl.float32)
    sum_normed = tl.zeros([COLUMNS], tl.float32)
    sum_gate = tl.zeros([COLUMNS], tl.float32)
    base = sums + image.to(tl.int64) * chunks * 3 * width + column
    for part in range(chunks):
        sum_u += tl.load(base + part * 3 * width, mask=mask, other=0.0)
        sum_normed += tl.load(base + (part * 3 + 1) * width, mask=mask, other=0.0)
        if HAS_GATE:
            sum_gate += tl.load(base + (part * 3 + 2) * width, mask=mask, other=0.0)
    at = image * width + column
    if HAS_GATE:
        tl.store(d_gate + at, sum_gate, mask=mask)
    factor = tl.zeros([COLUMNS], tl.float32) + 1.0
    if HAS_SHIFT:
        tl.store(d_shift + at, sum_u, mask=mask)
        # u depends on weight * (1 + scale): both gradients come from the same sum, without another pass.
        tl.store(d_scale + at, sum_normed * tl.load(weight + column, mask=mask, other=0.0), mask=mask)
        factor += tl.load(scale + image * stride_shift + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(d_weight + at, sum_normed * factor, mask=mask)
