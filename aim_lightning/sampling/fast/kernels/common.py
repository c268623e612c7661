"""Functions shared by several kernels, and the kernels of the residual stream: a step's input and the norms.

Shapes: M rows (images times guidance branches), D = d_model.
"""

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # another vendor's Triton, where CHAINED is never true
    gdc_launch_dependents = gdc_wait = None


# Programmatic dependent launch. A kernel may start once all programs of its predecessor have called `_start_next`.
# `_wait` returns when the predecessor has ended; that one waited for its own predecessor, so all older kernels have
# ended too. Before `_wait` a kernel writes nothing.
# The mixer's kernels (mixer_kernel, fragment_mixer_kernel, state_kernel) and sample_token_kernel call `_start_next`
# after their own `_wait`, all others immediately. Results of the kernels before the latest of those may therefore be
# read ahead of `_wait`:
# - top_candidates_kernel and sample_token_kernel follow a mixer. They read the options and the number of sampled codes,
#   which the previous sample_token_kernel incremented.
# - advance_kernel follows a mixer as well. It reads what in_proj_kernel (either form) left, and L of the previous code.
# - The first layer's in_proj_kernel (either form) and mixer follow sample_token_kernel. They read the step, which the
#   top_candidates_kernel before it incremented.
# - The mixer's kernels read L of the previous code, fragment_mixer_kernel also past codes and the state at the last
#   chunk's end, state_kernel its state. advance_kernel and state_kernel wrote them in the previous step.
# enter_kernel and chunk_kernel are ordinary launches: each starts when all older kernels have ended, and its successor
# when it has.


@triton.jit
def _start_next(CHAINED: tl.constexpr):
    if CHAINED:
        gdc_launch_dependents()


@triton.jit
def _wait(CHAINED: tl.constexpr):
    if CHAINED:
        gdc_wait()


@triton.jit
def _prefetch(pointers):
    """Prefetch these addresses into the L2 cache, without waiting.

    A cache line is 128 bytes, but hardware may load less: `line` of the configuration is the distance of addresses.
    """
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _along(axis: tl.constexpr, size: tl.constexpr):
    """Return 0 .. size - 1 along one of six axes."""
    index = tl.arange(0, size)
    for i in tl.static_range(6):
        if i != axis:
            index = tl.expand_dims(index, i)
    return index


@triton.jit
def _rms(x, count, eps):
    return tl.rsqrt(tl.sum(x * x, axis=0) / count + eps)


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def _softplus(x):
    """Return log(1 + exp(x)), exact also where exp(x) is small."""
    # log1p by log(u) e / (u - 1) with u = 1 + e rounded: the rounding errors of log(u) and u - 1 cancel.
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1 + e
    return tl.where(x > 20, x, tl.where(u == 1, e, tl.log(u) * e / (u - 1)))


@triton.jit
def _modulation(rows_ptr, D, cols, mask, MODULATED: tl.constexpr):
    """Return (shift, scale) of a row (shift, scale, …); zeros where the network has no modulation."""
    if MODULATED:
        shift = tl.load(rows_ptr + cols, mask, 0.0).to(tl.float32)
        scale = tl.load(rows_ptr + D + cols, mask, 0.0).to(tl.float32)
    else:
        shift = tl.zeros(cols.shape, tl.float32)
        scale = tl.zeros(cols.shape, tl.float32)
    return shift, scale


@triton.jit
def _enter(
    x, row, cols, mask, residual_ptr, weight_ptr, rows_ptr, h_ptr, D, eps, ROWS: tl.constexpr, MODULATED: tl.constexpr
):
    """Store a step's input of a row as residual, and the first layer's norm of it."""
    weight = tl.load(weight_ptr + cols, mask, 0.0).to(tl.float32)
    shift, scale = _modulation(rows_ptr + row * ROWS * D, D, cols, mask, MODULATED)
    tl.store(residual_ptr + row * D + cols, x, mask)
    h = x * _rms(x, D, eps) * weight * (1 + scale) + shift
    tl.store(h_ptr + row * D + cols, h.to(h_ptr.dtype.element_ty), mask)


@triton.jit
def enter_kernel(
    start_ptr, residual_ptr, weight_ptr, rows_ptr, h_ptr, D, eps, ROWS: tl.constexpr, MODULATED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the first step's input, the class embedding, and the first layer's norm; one program per row."""
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    x = tl.load(start_ptr + row * D + cols, cols < D, 0.0).to(tl.float32)
    _enter(x, row, cols, cols < D, residual_ptr, weight_ptr, rows_ptr, h_ptr, D, eps, ROWS, MODULATED)
