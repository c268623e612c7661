"""From logits to codes: the filters and the draw of `aim_lightning.sampling.filters`, without sorting."""

import triton
import triton.language as tl


@triton.jit
def _add6(a, b, c, d, e, f, g, h, i, j, k, m):
    return a + g, b + h, c + i, d + j, e + k, f + m


@triton.jit
def _above(x, mass, t1, t2, t3):
    """Mass and number of the entries of at least each of three thresholds, in one reduction."""
    zero, one = tl.zeros_like(mass), tl.full(mass.shape, 1.0, tl.float32)
    masses = (tl.where(x >= t1, mass, zero), tl.where(x >= t2, mass, zero), tl.where(x >= t3, mass, zero))
    counts = (tl.where(x >= t1, one, zero), tl.where(x >= t2, one, zero), tl.where(x >= t3, one, zero))
    return tl.reduce(masses + counts, 0, _add6)


@triton.jit
def _threshold(x, mass, wanted, low, high, count):
    """The largest entry T for which the entries x >= T have at least the wanted mass; sorts nothing.

    All `count` entries are at least `low` and below `high`. A quarter of the interval is left after each round, until
    it holds one entry, or two neighbouring floats where entries are equal. Bounds that are not finite end the search at
    once: its comparisons fail.
    """
    count_high = 0.0
    while (count - count_high > 1) & (high > low):
        quarter = (high - low) / 4
        t1, t2, t3 = low + quarter, low + 2 * quarter, low + 3 * quarter
        m1, m2, m3, n1, n2, n3 = _above(x, mass, t1, t2, t3)
        if (t1 <= low) | (t3 >= high):
            count_high = count  # nothing lies between: equal entries
        elif m3 >= wanted:
            low, count = t3, n3
        elif m2 >= wanted:
            low, count, high, count_high = t2, n2, t3, n3
        elif m1 >= wanted:
            low, count, high, count_high = t1, n1, t2, n2
        else:
            high, count_high = t1, n1
    return tl.min(tl.where(x >= low, x, float("inf")), axis=0)


@triton.jit
def choose_kernel(
    logits_ptr, codes_ptr, step_ptr, done_ptr, uniform_ptr, scale_ptr, temperature_ptr, top_k_ptr, top_p_ptr,
    diverged_ptr, V, T, images, GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Guidance, temperature, top-k, top-p and the draw of `aim_lightning.sampling.filters`, without sorting.

    Filters are thresholds, found by search. Logits that are not finite set the flag at diverged_ptr, and the code is
    any that exists. The last program moves the step on.
    """
    image, step = tl.program_id(0).to(tl.int64), tl.load(step_ptr)
    cols = tl.arange(0, BLOCK)
    mask = cols < V
    x = tl.load(logits_ptr + image * V + cols, mask, float("-inf")).to(tl.float32)
    if GUIDED:
        null = tl.load(logits_ptr + (image + images) * V + cols, mask, float("-inf")).to(tl.float32)
        scale = tl.load(scale_ptr + step)
        x = tl.where(cols < tl.where(scale == 1, 0, V), null + scale * (x - null), x)  # 1 is the class's own, exactly
    if tl.max(tl.where(mask & ~(tl.abs(x) < float("inf")), 1, 0), axis=0) > 0:
        tl.store(diverged_ptr, 1)
    x = x / tl.load(temperature_ptr)
    top_k, top_p = tl.load(top_k_ptr), tl.load(top_p_ptr)
    best = tl.max(x, axis=0)
    if top_k == 1:
        code = tl.minimum(tl.min(tl.where(x == best, cols, V), axis=0), V - 1)
    else:
        low, count = tl.min(tl.where(mask, x, float("inf")), axis=0), V * 1.0
        high = best + tl.abs(best) * 1e-6 + 1e-30
        if (top_k > 0) & (top_k < V):
            low = _threshold(x, tl.where(mask, 1.0, 0.0), top_k * 1.0, low, high, count)
            count = tl.sum(tl.where(x >= low, 1.0, 0.0), axis=0)
        mass = tl.where(mask & (x >= low), tl.exp(x - best), 0.0)
        if top_p < 1:
            wanted = top_p * tl.sum(mass, axis=0)
            low = _threshold(x, mass, wanted, low, high, count)
            tied = x == low
            each = tl.max(tl.where(tied, mass, 0.0), axis=0)
            # Of equal codes only as many as are needed stay, those of the lowest index.
            before = tl.sum(tl.where(x > low, mass, 0.0), axis=0)
            before += (tl.cumsum(tied.to(tl.int32), axis=0) - 1).to(tl.float32) * each
            mass = tl.where((x > low) | (tied & (before < wanted)), mass, 0.0)
        cumulative = tl.cumsum(mass.to(tl.float64), axis=0)
        target = tl.load(uniform_ptr + image * T + step) * tl.max(cumulative, axis=0)
        code = tl.minimum(tl.sum((cumulative <= target).to(tl.int32), axis=0), V - 1)
    tl.store(codes_ptr + image * T + step, code.to(tl.int64))
    if tl.atomic_add(done_ptr, 1) == images - 1:
        tl.store(done_ptr, 0)
        tl.store(step_ptr, step + 1)
