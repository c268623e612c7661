"""From logits to codes: the filters and the draw of `aim_lightning.sampling.filters`, without sorting."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _start_next, _wait


@triton.jit
def _add6(a, b, c, d, e, f, g, h, i, j, k, m):
    return a + g, b + h, c + i, d + j, e + k, f + m


@triton.jit
def _add3(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _least_and_most(a, b, c, d, e, f):
    return tl.minimum(a, d), tl.maximum(b, e), tl.maximum(c, f)


@triton.jit
def _above(x, mass, t1, t2, t3, COUNTING: tl.constexpr):
    """Mass and number of the entries of at least each of three thresholds, in one reduction; COUNTING: all masses 1."""
    zero, one = tl.zeros_like(x), tl.full(x.shape, 1.0, tl.float32)
    counts = (tl.where(x >= t1, one, zero), tl.where(x >= t2, one, zero), tl.where(x >= t3, one, zero))
    if COUNTING:
        n1, n2, n3 = tl.reduce(counts, 0, _add3)
        return n1, n2, n3, n1, n2, n3
    masses = (tl.where(x >= t1, mass, zero), tl.where(x >= t2, mass, zero), tl.where(x >= t3, mass, zero))
    return tl.reduce(masses + counts, 0, _add6)


@triton.jit
def _search(x, mass, wanted, low, high, count, count_high, enough, COUNTING: tl.constexpr):
    """Closer bounds of the largest entry T for which the entries x >= T have at least the wanted mass.

    The `count` entries x >= low have it, the `count_high` entries x >= high have not. A quarter of the interval is left
    after each round, until it holds one entry, or two neighbouring floats where entries are equal, or no more than
    `enough` entries are at least `low`. Bounds that are not finite end the search at once: its comparisons fail.
    """
    while (count - count_high > 1) & (high > low) & (count > enough):
        quarter = (high - low) * 0.25
        t1, t2, t3 = low + quarter, low + 2 * quarter, low + 3 * quarter
        m1, m2, m3, n1, n2, n3 = _above(x, mass, t1, t2, t3, COUNTING)
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
    return low, high, count, count_high


@triton.jit
def _draw(x, known, limited, top_k, top_p, uniform, best, low, high, count, count_high):
    """Place of the drawn entry; the bounds are those of the search for the top_k-th entry, where `limited`."""
    if limited:
        low, high, count, count_high = _search(x, x, top_k * 1.0, low, high, count, count_high, 0.0, True)
    mass = tl.where(known & (x >= low), tl.exp(x - best), 0.0)
    if top_p < 1:
        wanted = top_p * tl.sum(mass, axis=0)
        high = best + tl.abs(best) * 1e-6 + 1e-30
        low, high, count, count_high = _search(x, mass, wanted, low, high, count, 0 * count, 0.0, False)
        low = tl.min(tl.where(known & (x >= low), x, float("inf")), axis=0)
        tied = x == low
        each = tl.max(tl.where(tied, mass, 0.0), axis=0)
        # Of equal codes only as many as are needed stay, those of the lowest index.
        before = tl.sum(tl.where(x > low, mass, 0.0), axis=0)
        before += (tl.cumsum(tied.to(tl.int32), axis=0) - 1).to(tl.float32) * each
        mass = tl.where((x > low) | (tied & (before < wanted)), mass, 0.0)
    cumulative = tl.cumsum(mass.to(tl.float64), axis=0)
    return tl.sum((cumulative <= uniform * tl.max(cumulative, axis=0)).to(tl.int32), axis=0)


@triton.jit
def _guided(logits_ptr, scale_ptr, image, images, step, V, cols, mask, GUIDED: tl.constexpr):
    """An image's logits after guidance, float32; those beyond the vocabulary are -inf."""
    x = tl.load(logits_ptr + image * V + cols, mask, float("-inf")).to(tl.float32)
    if GUIDED:
        null = tl.load(logits_ptr + (image + images) * V + cols, mask, float("-inf")).to(tl.float32)
        scale = tl.load(scale_ptr + step)
        x = tl.where(cols < tl.where(scale == 1, 0, V), null + scale * (x - null), x)  # 1 is the class's own, exactly
    return x


@triton.jit
def choose_kernel(
    logits_ptr, codes_ptr, step_ptr, done_ptr, uniform_ptr, scale_ptr, temperature_ptr, top_k_ptr, top_p_ptr,
    diverged_ptr, values_ptr, places_ptr, V, T, images, GUIDED: tl.constexpr, BLOCK: tl.constexpr, FEW: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Guidance, temperature, top-k, top-p and the draw of `aim_lightning.sampling.filters`, without sorting.

    Filters are thresholds, found by search. As soon as no more than FEW entries can be among the top_k, those alone
    are gathered in index order at values_ptr and places_ptr, FEW an image, and searched on. Logits that are not finite
    set the flag at diverged_ptr, and the code is any that exists. The last program moves the step on.
    """
    _wait(CHAINED)
    _start_next(CHAINED)
    image, step = tl.program_id(0).to(tl.int64), tl.load(step_ptr)
    cols = tl.arange(0, BLOCK)
    mask = cols < V
    x = _guided(logits_ptr, scale_ptr, image, images, step, V, cols, mask, GUIDED)
    bad = tl.where(mask & ~(tl.abs(x) < float("inf")), 1, 0)
    top_k = tl.load(top_k_ptr)
    x = x / tl.where(top_k == 1, 1.0, tl.load(temperature_ptr))  # argmax is of the logits as they are
    low, best, bad = tl.reduce((tl.where(mask, x, float("inf")), x, bad), 0, _least_and_most)
    if bad > 0:
        tl.store(diverged_ptr, 1)
    top_p, uniform = tl.load(top_p_ptr), tl.load(uniform_ptr + image * T + step)
    if top_k == 1:
        code = tl.min(tl.where(x == best, cols, V), axis=0)
    else:
        limited = (top_k > 0) & (top_k < V)
        high = best + tl.abs(best) * 1e-6 + 1e-30
        count, count_high = V * 1.0, V * 0.0
        if limited:
            low, high, count, count_high = _search(x, x, top_k * 1.0, low, high, count, count_high, FEW * 1.0, True)
        if limited & (count <= FEW):
            kept = mask & (x >= low)
            slots = image * FEW + tl.cumsum(kept.to(tl.int32), axis=0) - 1
            tl.store(values_ptr + slots, x, kept)
            tl.store(places_ptr + slots, cols, kept)
            tl.debug_barrier()
            few = tl.arange(0, FEW)
            known = few < count.to(tl.int32)
            x_few = tl.load(values_ptr + image * FEW + few, known, float("-inf"))
            place = _draw(x_few, known, limited, top_k, top_p, uniform, best, low, high, count, count_high)
            code = tl.load(places_ptr + image * FEW + tl.minimum(place, FEW - 1))
        else:
            code = _draw(x, mask, limited, top_k, top_p, uniform, best, low, high, count, count_high)
    tl.store(codes_ptr + image * T + step, tl.minimum(code, V - 1).to(tl.int64))
    if tl.atomic_add(done_ptr, 1) == images - 1:
        tl.store(done_ptr, 0)
        tl.store(step_ptr, step + 1)
