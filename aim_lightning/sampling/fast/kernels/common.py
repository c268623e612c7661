"""Functions shared by several kernels: dependent launch, prefetch, norm and activations."""

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # another vendor's Triton, where CHAINED is never true
    gdc_launch_dependents = gdc_wait = None


# Programmatic dependent launch. A kernel may start once all programs of its predecessor have called `_start_next`.
# `_wait` returns when the predecessor has ended; that one waited for its own predecessor, so all older kernels have
# ended too. Before `_wait` a kernel writes nothing.
# mixer_kernel, sample_token_kernel and enter_kernel call `_start_next` after their own `_wait`, all others immediately.
# Results of the kernels before the latest of those three may therefore be read ahead of `_wait`. For
# top_candidates_kernel and sample_token_kernel the latest is a mixer_kernel: they read ahead the options and the step,
# which an older sample_token_kernel incremented.


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
