"""What several kernels share."""

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # another vendor's Triton: `chained` is never true there
    gdc_launch_dependents = gdc_wait = None


# Programmatic dependent launch. A kernel may start once all programs of the one before have called `_start_next`, and
# `_wait` returns when the one before has ended; since that one waited for its own predecessor, all older ones have
# ended too. Before `_wait` a kernel writes nothing. mix, choose and enter let the next kernel start after their own
# `_wait`, the others (sift too) at once: so what the kernels before the last of those three wrote may be read ahead of
# `_wait`. For sift and choose the last of them is a mix: they read ahead options and the step, which an older choose
# moved on.


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
    """Bring what lies at these addresses into the L2 cache, without waiting for it.

    A cache line is 128 bytes, but fewer may come: how far apart the addresses lie is a shape's `line`.
    """
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _rms(x, count, eps):
    return tl.rsqrt(tl.sum(x * x, axis=0) / count + eps)


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), exact also where exp(x) is small: log(u) e / (u - 1) with u = 1 + e rounded."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = 1 + e
    return tl.where(x > 20, x, tl.where(u == 1, e, tl.log(u) * e / (u - 1)))
