"""Packed x and B of past codes, and the sum over them by products on tensor cores (bfloat16)."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.past import _mask

# Packed values: the low byte of the bfloat16 192 + value / unit, from 128 (step 1) to 510 (from 256 on step 2), where
# the high byte is 0x43. SiLU makes values positive except for small ones, so that most of the range is above 192. Codes
# 2 i and 2 i + 1 share an int16. Products take 192 + value / unit, and 192 times the sum of the other factor is
# subtracted. Any byte is a finite value, also that of a code not yet sampled, whose weight is zero.
OFFSET = tl.constexpr(192.0)
BELOW, ABOVE = tl.constexpr(64.0), tl.constexpr(318.0)  # units


@triton.jit
def _unit(values):
    """Return the least unit for a value; the unit of several values is the largest."""
    return tl.maximum(values * (1 / ABOVE), values * (-1 / BELOW))


@triton.jit
def _pack(values, pairs, odd):
    """Return values in units of a code in the int16 of its pair, which holds the even code already."""
    values = (values + OFFSET).to(tl.bfloat16).to(tl.int16, bitcast=True) & 0xFF
    return tl.where(odd, (pairs & 0xFF) | (values << 8), values)


@triton.jit
def _pack_heads(x_W, pairs_W, odd, P: tl.constexpr):
    """Return `_pack` of x, and the unit of each head."""
    x_HP = tl.reshape(x_W, (x_W.shape[0] // P, P))
    unit_H = tl.maximum(tl.max(_unit(x_HP), axis=1), 1e-30)
    return _pack(tl.reshape(x_HP / unit_H[:, None], x_W.shape), pairs_W, odd), unit_H


@triton.jit
def _sums(a, b, c, d):
    return a + c, b + d


@triton.jit
def _values(pairs, ODD: tl.constexpr):
    """Return 192 + value / unit of the even or the odd codes, bfloat16."""
    # One instruction for two values: bytes 0 and 2, or 1 and 3, each followed by 0x43.
    select: tl.constexpr = "prmt.b32 $0, $1, 0x43434343, 0x4341;" if ODD else "prmt.b32 $0, $1, 0x43434343, 0x4240;"
    return tl.inline_asm_elementwise(select, "=r,r", [pairs], tl.bfloat16, is_pure=True, pack=2)


@triton.jit
def _stored(
    pointers, pairs, codes, ODD: tl.constexpr, STRIDE: tl.constexpr, T: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """Load the values of the even or the odd codes of pairs in their units, float32; codes from T on do not count.

    pointers: to the first code's values.
    """
    if PACKED:
        values = _values(tl.load(pointers + pairs * STRIDE, codes < T, 0), ODD).to(tl.float32) - OFFSET
    else:
        values = tl.load(pointers + codes * STRIDE, codes < T, 0.0)
    return values


@triton.jit
def _packed_block(
    xs_ptr, bs_ptr, gs_ptr, first, step, heads, wide, cols, states, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Load the stored inputs of STEPS codes: x_SW and b_NS of pairs, g_RS of the even codes and of the odd ones."""
    pairs = first // 2 + tl.arange(0, STEPS // 2)
    even, odd = 2 * pairs, 2 * pairs + 1
    x_SW = tl.load(xs_ptr + pairs[:, None] * INNER + wide[None, :], _mask(even < step, cols, W), 0)
    b_NS = tl.load(bs_ptr + pairs[None, :] * N + states[:, None], (even < step)[None, :], 0)
    even_g = tl.load(gs_ptr + heads[:, None] * T + even[None, :], (even < step)[None, :], float("-inf"))
    odd_g = tl.load(gs_ptr + heads[:, None] * T + odd[None, :], (odd < step)[None, :], float("-inf"))
    return x_SW, b_NS, even_g, odd_g


@triton.jit
def _add_block(sums_RW, weights_RS, block, c_RN, c_sum, decay):
    """Add a block to the sums of x and of its weights C B^T * decay, by two products each for even and odd codes."""
    for odd in tl.static_range(2):
        scores_RS = tl.dot(c_RN, _values(block[1], odd)) - c_sum * OFFSET
        weight_RS = (tl.exp((decay[:, None] + block[2 + odd]).to(tl.float32)) * scores_RS).to(c_RN.dtype)
        sums_RW = tl.dot(weight_RS, _values(block[0], odd), sums_RW)
        weights_RS += weight_RS.to(tl.float32)
    return sums_RW, weights_RS


@triton.jit
def _of_heads(sums_RW, cols, P: tl.constexpr):
    """Return each head's columns of its own row."""
    head_columns = tl.arange(0, sums_RW.shape[0])[:, None] == (cols // P)[None, :]
    return tl.sum(tl.where(head_columns, sums_RW, 0.0), axis=0)


@triton.jit
def _past_by_products(
    sums_RW, xs_ptr, bs_ptr, gs_ptr, c, c_sum, decay, heads, wide, cols, step, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Add past codes to the sums block by block.

    A product has 16 rows, one per head; of a head's row only the head's columns count. c: bfloat16; c_sum: its sum.
    """
    ROWS: tl.constexpr = heads.shape[0]
    states = tl.arange(0, N)
    c_RN = tl.broadcast_to(c[None, :], (ROWS, N))
    weights_RS = tl.zeros((ROWS, STEPS // 2), tl.float32)
    for first in range(0, step, STEPS):
        block = _packed_block(xs_ptr, bs_ptr, gs_ptr, first, step, heads, wide, cols, states, T, INNER, N, W, STEPS)
        sums_RW, weights_RS = _add_block(sums_RW, weights_RS, block, c_RN, c_sum, decay)
    sums_RW -= tl.sum(weights_RS, axis=1)[:, None] * OFFSET
    # The indices have the columns' own order: `gather` ends the layout of the product, so that this one vector is moved
    # between threads instead of all that are combined with it.
    return tl.gather(_of_heads(sums_RW, cols, P), cols, 0)


@triton.jit
def _packed_step(
    sums_RW, xs_ptr, bs_ptr, gs_ptr, b, c, decay, heads, wide, cols, step, T, INNER: tl.constexpr, N: tl.constexpr,
    W: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Return the sums with those over past codes added, and C B^T of the newest code."""
    rounded = c.to(tl.bfloat16)
    # One reduction for both: each takes barriers of all warps.
    score, c_sum = tl.reduce((b * c, rounded.to(tl.float32)), 0, _sums)
    past_W = _past_by_products(
        sums_RW, xs_ptr, bs_ptr, gs_ptr, rounded, c_sum, decay, heads, wide, cols, step, T, INNER, N, W, P, STEPS
    )
    return past_W, score
