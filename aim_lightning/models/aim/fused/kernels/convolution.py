"""Causal depthwise convolution and SiLU of x, B and C, forward and backward."""

import triton
import triton.language as tl

from aim_lightning.models.aim.fused.kernels.tiles import load_rows, per_head, sigmoid, store_rows


@triton.jit
def _tap(start, rows, columns, back, stride_row, length, width):
    """Load the inputs `back` rows earlier, float32; 0 before the first row."""
    earlier = rows - back
    inside = ((earlier >= 0) & (earlier < length))[:, None] & (columns < width)[None, :]
    return tl.load(start + earlier[:, None] * stride_row + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _preactivation(xbc, rows, columns, weight, bias, stride_row, length, width, TAPS: tl.constexpr):
    """Compute the convolution of a tile in float32; `xbc` points to row 0 of the image."""
    mask = columns < width
    value = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    value += tl.load(bias + columns, mask=mask, other=0.0)[None, :]
    for tap in tl.static_range(TAPS):
        x = _tap(xbc, rows, columns, TAPS - 1 - tap, stride_row, length, width)
        value += x * tl.load(weight + columns * TAPS + tap, mask=mask, other=0.0)[None, :]
    return value


@triton.jit
def convolution_forward(
    xbc, weight, bias, scale, post, scaled, length, width, inner, channels, stride_image, stride_units,
    TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Compute post = SiLU(conv(xbc)) and scaled = x * scale (images, heads, length). Grid (images, rows, columns)."""
    stride_row = stride_units * UNIT  # a multiple that the compiler sees: it decides how wide loads are
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    start = xbc + image * stride_image
    value = _preactivation(start, rows, columns, weight, bias, stride_row, length, width, TAPS)
    value *= sigmoid(value)
    store_rows(post + image * length * width, rows, width, columns, length, width, value)
    if tl.program_id(2) * COLUMNS < inner:
        # Rounded as the scan reads it, so that both uses of x see the same value.
        factor = per_head(scale, image, rows, columns, length, inner, channels)
        value = value.to(post.dtype.element_ty).to(tl.float32) * factor
        store_rows(scaled + image * length * inner, rows, inner, columns, length, inner, value)


@triton.jit
def activation_backward(
    xbc, weight, bias, d_post, sums, length, width, chunk, stride_image, stride_units,
    TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Turn d_post into the gradient of the pre-activations, in place, and sum the gradients of taps and bias.

    sums (images * chunks, TAPS + 1, width) gets the sums over each chunk of rows. Grid (images, chunks, columns).
    """
    stride_row = stride_units * UNIT  # a multiple that the compiler sees: it decides how wide loads are
    image = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < width
    start = xbc + image * stride_image
    gradient = d_post + image * length * width
    # One accumulator per tap and element of the tile: rows are added up once, at the end.
    totals = ()
    for _ in tl.static_range(TAPS + 1):
        totals = totals + (tl.zeros([ROWS, COLUMNS], tl.float32),)  # noqa: RUF005 (Triton has no unpacking)
    first = tl.program_id(1) * chunk
    for begin in tl.range(first, min(first + chunk, length), ROWS):
        rows = begin + tl.arange(0, ROWS)
        value = _preactivation(start, rows, columns, weight, bias, stride_row, length, width, TAPS)
        gate = sigmoid(value)
        d = load_rows(gradient, rows, width, columns, length, width).to(tl.float32)
        d *= gate * (1.0 + value * (1.0 - gate))
        store_rows(gradient, rows, width, columns, length, width, d)
        added = ()
        for tap in tl.static_range(TAPS):
            x = _tap(start, rows, columns, TAPS - 1 - tap, stride_row, length, width)
            added = added + (totals[tap] + d * x,)  # noqa: RUF005
        totals = added + (totals[TAPS] + d,)  # noqa: RUF005
    base = sums + (image * tl.num_programs(1) + tl.program_id(1)) * (TAPS + 1) * width + columns
    for tap in tl.static_range(TAPS + 1):
        tl.store(base + tap * width, tl.sum(totals[tap], 0), mask=mask)


@triton.jit
def convolution_backward(
    d_pre, weight, d_xbc, length, width, stride_image, stride_units,
    TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the input from that of the pre-activations in rows r to r + TAPS - 1.

    Grid (images, rows, columns).
    """
    stride_row = stride_units * UNIT  # a multiple that the compiler sees: it decides how wide loads are
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < width
    start = d_pre + image * length * width
    dx = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tap in tl.static_range(TAPS):
        d = _tap(start, rows, columns, tap - (TAPS - 1), width, length, width)
        dx += d * tl.load(weight + columns * TAPS + tap, mask=mask, other=0.0)[None, :]
    store_rows(d_xbc + image * stride_image, rows, stride_row, columns, length, width, dx)
