"""States at the ends of chunks, for long sequences: a step reads the last one, and the stored codes after it.

Within a chunk L starts at zero, so that y_t = exp(L_t) C_t S + the dual form's sum over the codes of the chunk. S, (N,
INNER) per row, is read like N past codes with the weights C. Only the end of a chunk rounds it to the weights' type.
"""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernel_configs import STATE_BLOCK
from aim_lightning.sampling.fast.kernels.packed import _stored
from aim_lightning.sampling.fast.kernels.past import _load_columns

BLOCK = tl.constexpr(STATE_BLOCK)
PAIRS = tl.constexpr(16)  # of codes per product, the least number that tensor cores take


@triton.jit
def _from_state(
    state_ptr, c_ptr, decay, wide, cols, count, INNER: tl.constexpr, N: tl.constexpr, W: tl.constexpr,
    PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Return exp(L) C S, a row per head of which only the head's columns count; `count`: N, or 0 before the first S."""
    STATES: tl.constexpr = min(N, BLOCK)
    sums_RW = tl.zeros((decay.shape[0], cols.shape[0]), tl.float32)
    for first in range(0, count, STATES):
        states = first + tl.arange(0, STATES)
        c_S = tl.load(c_ptr + states)
        state_SW = _load_columns(state_ptr + states[:, None] * INNER + wide[None, :], cols[None, :], W)
        if PRODUCTS:
            c_RS = tl.broadcast_to(c_S.to(tl.bfloat16)[None, :], (decay.shape[0], STATES))
            sums_RW = tl.dot(c_RS, state_SW, sums_RW)
        else:
            sums_RW += tl.sum(c_S[:, None] * state_SW, axis=0)[None, :]
    return sums_RW * tl.exp(decay.to(tl.float32))[:, None]


@triton.jit
def chunk_kernel(
    xs_ptr, bs_ptr, gs_ptr, decay_ptr, state_ptr, step_ptr, INNER: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    N: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Add a complete chunk to the state: S = exp(L) S + sum over s of exp(L + g_s) B_s x_s; a program per row and head.

    The step is that of the next chunk's first code. An ordinary launch between two steps.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    PACKED: tl.constexpr = xs_ptr.dtype.element_ty.is_int()
    # Packed values of B are exact in bfloat16; float32 ones are multiplied without TF32.
    PRODUCT: tl.constexpr = tl.bfloat16 if PACKED else tl.float32
    LENGTH: tl.constexpr = CHUNK // 2 if PACKED else CHUNK
    states, cols = tl.arange(0, N), head * P + tl.arange(0, P)
    xs_ptr += row * LENGTH * INNER
    bs_ptr += row * LENGTH * N
    gs_ptr += (row * H + head) * CHUNK
    state_ptr += row * N * INNER + states[:, None] * INNER + cols[None, :]
    decay = tl.load(decay_ptr + row * H + head)
    later = tl.load(step_ptr) > CHUNK  # the first chunk starts from zero
    sums_NP = tl.load(state_ptr, later & (states[:, None] >= 0), 0.0).to(tl.float32) * tl.exp(decay.to(tl.float32))
    for first in range(0, CHUNK, 2 * PAIRS):
        pairs = first // 2 + tl.arange(0, PAIRS)
        for odd in tl.static_range(2):
            codes = 2 * pairs + odd
            g_S = tl.load(gs_ptr + codes, codes < CHUNK, float("-inf"))
            x_SP = _stored(xs_ptr + cols[None, :], pairs[:, None], codes[:, None], odd, INNER, CHUNK, PACKED)
            b_NS = _stored(bs_ptr + states[:, None], pairs[None, :], codes[None, :], odd, N, CHUNK, PACKED)
            x_SP *= tl.exp((decay + g_S).to(tl.float32))[:, None]
            sums_NP = tl.dot(b_NS.to(PRODUCT), x_SP.to(PRODUCT), sums_NP, input_precision="ieee")
    tl.store(state_ptr, sums_NP.to(state_ptr.dtype.element_ty))
