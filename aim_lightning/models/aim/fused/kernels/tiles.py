"""Arithmetic that several training kernels share."""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
# Cumulative log decay of rows past the end: with 0, their differences to valid rows would be positive and overflow.
PAST_END = tl.constexpr(-1e30)


@triton.jit
def dot(a, b, acc):
    """Multiply tiles and add to `acc`: tensor cores in bf16, exact products in float32."""
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def exp(x):
    """Return e^x; results below 1.2e-38 are 0."""
    # The interpreter runs no assembly. `tl.exp` costs four more instructions, which handle those small results.
    if INTERPRETED:
        y = tl.exp(x)
    else:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * 1.4426950408889634], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    # The instruction is exact to one unit in the last place; a division costs eight.
    if INTERPRETED:
        y = 1.0 / (1.0 + tl.exp(-x))
    else:
        y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + exp(-x)], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)), written as log1p: for small exp(x), log(1 + exp(x)) would lose all digits."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1.0 + e
    # log1p(e) = log(u) * e / (u - 1) corrects the rounding of u (Kahan).
    return tl.where(x > 20.0, x, tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0))))


@triton.jit
def load_rows(start, rows, stride_row, columns, length, width):
    """Load a tile of rows and columns; 0 outside."""
    mask = (rows < length)[:, None] & (columns < width)[None, :]
    return tl.load(start + rows[:, None] * stride_row + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(start, rows, stride_row, columns, length, width, values):
    """Store a tile of rows and columns in the type of the destination."""
    mask = (rows < length)[:, None] & (columns < width)[None, :]
    tl.store(start + rows[:, None] * stride_row + columns[None, :], values.to(start.dtype.element_ty), mask=mask)


@triton.jit
def per_head(values, image, rows, columns, length, inner, channels):
    """Load a value per head and row for each element of a tile."""
    mask = (rows < length)[:, None] & (columns < inner)[None, :]
    head = image * (inner // channels) + columns // channels
    return tl.load(values + head[None, :] * length + rows[:, None], mask=mask, other=0.0)


@triton.jit
def causal_decay(log_decay, offsets):
    """Return exp(log_i - log_j) for i >= j, else 0, of cumulative log decays within a block.

    Masked before exp: the exponents above the diagonal are positive and could overflow.
    """
    lower = offsets[:, None] >= offsets[None, :]
    return exp(tl.where(lower, log_decay[:, None] - log_decay[None, :], float("-inf")))
