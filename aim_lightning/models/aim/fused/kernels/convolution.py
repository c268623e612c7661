"""Causal depthwise convolution and SiLU of x, B and C, forward and backward.

A program walks down its columns with a row of values in each register, so that every value is read from memory once.
"""

import triton
import triton.language as tl

from aim_lightning.models.aim.fused.kernels.tiles import sigmoid


@triton.jit
def _parameters(weight, bias, columns, width, TAPS: tl.constexpr):
    """Load a tuple of the taps' weights, oldest row first, and the bias, float32."""
    taps = ()
    for tap in tl.static_range(TAPS):
        value = tl.load(weight + columns * TAPS + tap, mask=columns < width, other=0.0)
        taps = taps + (value.to(tl.float32),)  # noqa: RUF005 (Triton has no unpacking)
    return taps, tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)


@triton.jit
def _load_rows(start, first, columns, stride_row, length, width, COUNT: tl.constexpr):
    """Load COUNT rows from `first` on as a tuple; 0 outside of the image."""
    rows = ()
    for r in tl.static_range(COUNT):
        row = first + r
        limit = tl.where((row >= 0) & (row < length), width, 0)
        rows = rows + (tl.load(start + row * stride_row + columns, mask=columns < limit, other=0.0),)  # noqa: RUF005
    return rows


@triton.jit
def _preactivation(x, taps, bias, FIRST: tl.constexpr, TAPS: tl.constexpr):
    """Compute the convolution of the rows from FIRST on, float32."""
    value = bias
    for tap in tl.static_range(TAPS):
        value += x[FIRST + tap].to(tl.float32) * taps[tap]
    return value


@triton.jit
def convolution_forward(
    xbc, weight, bias, scale, post, scaled, length, width, inner, channels, stride_image, stride_units,
    TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Compute post = SiLU(conv(xbc)) and scaled = x * scale (images, heads, length). Grid (images, rows, columns).

    GROUP is a power of two that divides the channels of a head: a group of columns has one scale per row.
    """
    stride_row = stride_units * UNIT  # a multiple that the compiler sees: it decides how wide loads are
    image, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * ROWS
    group = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS // GROUP) * GROUP
    columns = group[:, None] + tl.arange(0, GROUP)[None, :]
    taps, offset = _parameters(weight, bias, columns, width, TAPS)
    start = xbc + image * stride_image
    x = _load_rows(start, first - (TAPS - 1), columns, stride_row, length, width, ROWS + TAPS - 1)
    scales = scale + (image * (inner // channels) + group // channels) * length
    for r in tl.static_range(ROWS):
        row = first + r
        value = _preactivation(x, taps, offset, r, TAPS)
        value = (value * sigmoid(value)).to(post.dtype.element_ty)
        at = image * length + row
        tl.store(post + at * width + columns, value, mask=columns < tl.where(row < length, width, 0))
        if tl.program_id(2) * COLUMNS < inner:
            limit = tl.where(row < length, inner, 0)
            # Rounded as the scan reads it, so that both uses of x see the same value.
            product = value.to(tl.float32) * tl.load(scales + row, mask=group < limit, other=0.0)[:, None]
            tl.store(scaled + at * inner + columns, product.to(scaled.dtype.element_ty), mask=columns < limit)


@triton.jit
def convolution_backward(
    xbc, weight, bias, d_post, d_xbc, sums, length, width, chunk, stride_image, stride_units,
    TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of xbc from that of post, and sum the gradients of taps and bias.

    sums (images * chunks, TAPS + 1, width) gets the sums over each chunk of rows. A row of xbc has a part in TAPS rows
    of the convolution, so the last rows of the chunk are computed by the next one, too. Grid (images, chunks, columns).
    """
    stride_row = stride_units * UNIT  # a multiple that the compiler sees: it decides how wide loads are
    image, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * chunk
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    taps, offset = _parameters(weight, bias, columns, width, TAPS)
    totals = ()
    for _ in tl.static_range(TAPS + 1):
        totals = totals + (tl.zeros([COLUMNS], tl.float32),)  # noqa: RUF005
    for begin in tl.range(first, min(first + chunk, length), ROWS):
        start = xbc + image * stride_image
        x = _load_rows(start, begin - (TAPS - 1), columns, stride_row, length, width, ROWS + 2 * (TAPS - 1))
        d = _load_rows(d_post + image * length * width, begin, columns, width, length, width, ROWS + TAPS - 1)
        d_pre = ()
        for r in tl.static_range(ROWS + TAPS - 1):
            value = _preactivation(x, taps, offset, r, TAPS)
            gate = sigmoid(value)
            d_pre = d_pre + (d[r].to(tl.float32) * gate * (1.0 + value * (1.0 - gate)),)  # noqa: RUF005
        added = ()
        for tap in tl.static_range(TAPS):
            total = totals[tap]
            for r in tl.static_range(ROWS):
                total += d_pre[r] * x[r + tap].to(tl.float32)
            added = added + (total,)  # noqa: RUF005
        total = totals[TAPS]
        for r in tl.static_range(ROWS):
            total += d_pre[r]
        totals = added + (total,)  # noqa: RUF005
        for r in tl.static_range(ROWS):
            dx = tl.zeros([COLUMNS], tl.float32)
            for tap in tl.static_range(TAPS):
                dx += d_pre[r + TAPS - 1 - tap] * taps[tap]
            row = begin + r
            at = d_xbc + image * stride_image + row * stride_row + columns
            tl.store(at, dx.to(d_xbc.dtype.element_ty), mask=columns < tl.where(row < length, width, 0))
    base = sums + (image * tl.num_programs(1) + tl.program_id(1)) * (TAPS + 1) * width + columns
    for tap in tl.static_range(TAPS + 1):
        tl.store(base + tap * width, totals[tap], mask=columns < width)
