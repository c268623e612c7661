"""What several kernels share."""

import triton
import triton.language as tl


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
