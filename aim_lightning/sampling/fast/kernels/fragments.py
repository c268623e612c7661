"""Packed x and B of past codes, loaded into registers in the order in which tensor cores take them.

In a product of 16 rows and 16 inner values, lane l of a warp holds rows l // 4 and l // 4 + 8, and inner values
2 (l % 4), + 1, + 8 and + 9. Which column, state or code each of them stands for is free. So a lane loads 16 bytes of
neighbouring columns of x, or states of B, and uses them in several products. Neither goes through shared memory.

What is loaded has six axes: (l % 4, l // 4, warps, then values of a thread). The compiler assigns them in this order.
Products have a batch axis: others would take instructions for 64 rows, whose second factor is in shared memory.

G: at most 8 groups of 8 columns; Q: parts of 8 G columns, the batch of products with x; V: blocks of 16 pairs of
codes, the batch of products with B; R: heads, padded to 8 or 16.
"""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _along
from aim_lightning.sampling.fast.kernels.packed import _values


@triton.jit
def _load(pointers, valid, other, shape: tl.constexpr):
    return tl.load(tl.broadcast_to(pointers, shape), tl.broadcast_to(valid, shape), other)


@triton.jit
def _columns(W: tl.constexpr):
    """Return a program's columns, padded, along the axes (1: G, 2: Q, 4: 8 neighbours)."""
    PADDED: tl.constexpr = triton.next_power_of_2(W)
    G: tl.constexpr = min(8, PADDED // 8)
    return _along(2, PADDED // (8 * G)) * (8 * G) + _along(1, G) * 8 + _along(4, 8)


@triton.jit
def _load_x(xs_ptr, first, past, part, INNER: tl.constexpr, W: tl.constexpr, STEPS: tl.constexpr):
    """Load packed x of STEPS codes from `first` on: (4 pairs of codes, G, Q, blocks of 4 pairs, 8 columns)."""
    PADDED: tl.constexpr = triton.next_power_of_2(W)
    G: tl.constexpr = min(8, PADDED // 8)
    BLOCKS: tl.constexpr = STEPS // 8
    column = _columns(W)
    valid = first + 2 * (_along(3, BLOCKS) * 4 + _along(0, 4)) < past
    if W & (W - 1):
        valid = valid & (column < W)
    # Offsets that are the same in all threads are added last: as constants they are parts of instructions.
    pointers = xs_ptr + first // 2 * INNER + part * W + (_along(0, 4) * INNER + column) + _along(3, BLOCKS) * 4 * INNER
    x = _load(pointers, valid, 0, (4, G, PADDED // (8 * G), BLOCKS, 8, 1))
    return tl.reshape(x, (4, G, PADDED // (8 * G), BLOCKS, 8))


@triton.jit
def _both_codes(pairs):
    """Return 192 + x / unit of the even and the odd codes of what `_load_x` returns, (4, G, Q, BLOCKS, 8, 2)."""
    # The two results of an instruction are those of two neighbouring pairs: a register holds both codes of one.
    first, second = tl.inline_asm_elementwise(
        "prmt.b32 $0, $2, 0x43434343, 0x4140; prmt.b32 $1, $2, 0x43434343, 0x4342;", "=r,=r,r", [pairs],
        (tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
    )  # fmt: skip
    split: tl.constexpr = (4, pairs.shape[1], pairs.shape[2], pairs.shape[3], 4, 2)
    both = tl.join(tl.reshape(first, split), tl.reshape(second, split))  # ..., two pairs, code, pair
    return tl.reshape(
        tl.permute(both, (0, 1, 2, 3, 4, 6, 5)), (4, pairs.shape[1], pairs.shape[2], pairs.shape[3], 8, 2)
    )


@triton.jit
def _x_fragments(x):
    """Return 192 + x / unit, (Q, 8 G columns, codes in the order of `_in_order_of_x`)."""
    G: tl.constexpr = x.shape[1]
    Q: tl.constexpr = x.shape[2]
    both = tl.reshape(_both_codes(x), (4, G, Q, x.shape[3] // 2, 2, 8, 2))
    return tl.reshape(tl.permute(both, (2, 5, 1, 3, 0, 4, 6)), (Q, 8 * G, x.shape[3] * 8))


@triton.jit
def _in_order_of_x(weights_SR):
    """Reorder the codes of weights as `_x_fragments` has them."""
    S: tl.constexpr = weights_SR.shape[0]
    R: tl.constexpr = weights_SR.shape[1]
    return tl.reshape(tl.permute(tl.reshape(weights_SR, (S // 16, 2, 4, 2, R)), (0, 2, 1, 3, 4)), (S, R))


@triton.jit
def _load_b(bs_ptr, first, past, N: tl.constexpr, STEPS: tl.constexpr):
    """Load packed B of STEPS codes from `first` on: (4 runs of J states, 8 pairs, V, 2 halves of pairs, blocks, J)."""
    J: tl.constexpr = min(8, N // 4)
    V: tl.constexpr = STEPS // 32
    pair = _along(2, V) * 8 + _along(1, 8)
    valid = first + 2 * (_along(3, 2) * (STEPS // 4) + pair) < past
    pointers = bs_ptr + first // 2 * N + (pair * N + _along(0, 4) * J + _along(5, J))
    pointers += _along(3, 2) * (STEPS // 4 * N) + _along(4, N // (4 * J)) * (4 * J)
    return _load(pointers, valid, 0, (4, 8, V, 2, N // (4 * J), J))


@triton.jit
def _b_fragments(b, ODD: tl.constexpr, N: tl.constexpr):
    """Return 192 + B / unit of the even or the odd codes, (V, 16 pairs, N in the order of `_load_in_order_of_b`)."""
    J: tl.constexpr = min(8, N // 4)
    V: tl.constexpr = b.shape[2]
    b = tl.reshape(_values(b, ODD), (4, 8, V, 2, N // (4 * J), J // 4, 2, 2))
    return tl.reshape(tl.permute(b, (2, 3, 1, 4, 5, 6, 0, 7)), (V, 16, N))


@triton.jit
def _load_in_order_of_b(values_ptr, N: tl.constexpr):
    """Load B or C of the newest code with the states in the order of `_b_fragments`."""
    J: tl.constexpr = min(8, N // 4)
    values = tl.load(values_ptr + _along(1, N // (4 * J)) * (4 * J) + _along(0, 4) * J + _along(2, J))
    values = tl.reshape(values, (4, N // (4 * J), J // 4, 2, 2))
    return tl.reshape(tl.permute(values, (1, 2, 3, 0, 4)), (N,))


@triton.jit
def _load_exponents(
    gs_ptr, decay_ptr, first, past, part, T, HEADS: tl.constexpr, R: tl.constexpr, STEPS: tl.constexpr
):  # fmt: skip
    """Return L of the previous code + g: (4, 8 pairs, V, R // 4, 2 codes, 1); -inf for codes from `past` on."""
    V: tl.constexpr = STEPS // 16
    other = _along(3, R // 4)  # high bit, then low bit of a head's number
    head = part * HEADS + tl.minimum(other // 2 * 8 + _along(0, 4) * 2 + other % 2, HEADS - 1)
    code = first + _along(2, V) * 16 + _along(1, 8) * 2 + _along(4, 2)
    g = _load(gs_ptr + head * T + code, code < past, float("-inf"), (4, 8, V, R // 4, 2, 1))
    before = tl.load(decay_ptr + head, (head >= 0) & (past > 0), 0.0)
    return (before + g).to(tl.float32)


@triton.jit
def _decay_fragments(exponents):
    """Return the exponential function of what `_load_exponents` returns, (V, 8 pairs, R, 2 codes)."""
    V: tl.constexpr = exponents.shape[2]
    R: tl.constexpr = 4 * exponents.shape[3]
    decay = tl.reshape(tl.exp(exponents), (4, 8, V, R // 8, 2, 2))
    return tl.reshape(tl.permute(decay, (2, 1, 3, 0, 4, 5)), (V, 8, R, 2))


@triton.jit
def _load_state(state_ptr, part, INNER: tl.constexpr, W: tl.constexpr, STATES: tl.constexpr):
    """Load STATES rows of a row's state (N, INNER): (4 runs of J states, G, Q, STATES // 4, 8 columns, 1)."""
    PADDED: tl.constexpr = triton.next_power_of_2(W)
    G: tl.constexpr = min(8, PADDED // 8)
    J: tl.constexpr = min(8, STATES // 4)
    column = _columns(W)
    block, within = _along(3, STATES // 4) // J, _along(3, STATES // 4) % J
    pointers = state_ptr + part * W + (_along(0, 4) * (J * INNER) + column) + (block * 4 * J + within) * INNER
    return _load(pointers, column < W, 0.0, (4, G, PADDED // (8 * G), STATES // 4, 8, 1))


@triton.jit
def _state_fragments(state):
    """Return rows of the state, (Q, 8 G columns, states in the order of `_load_in_order_of_b`)."""
    G: tl.constexpr = state.shape[1]
    Q: tl.constexpr = state.shape[2]
    STATES: tl.constexpr = 4 * state.shape[3]
    J: tl.constexpr = min(8, STATES // 4)
    state = tl.reshape(state, (4, G, Q, STATES // (4 * J), J // 4, 2, 2, 8))
    return tl.reshape(tl.permute(state, (2, 7, 1, 3, 4, 5, 0, 6)), (Q, 8 * G, STATES))
