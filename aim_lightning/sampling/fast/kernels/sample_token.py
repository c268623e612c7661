"""From logits to codes: the filters and the draw of `aim_lightning.sampling.filters`, without sorting."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _start_next, _wait
from aim_lightning.sampling.fast.kernels.search import _beyond, _search, _stay
from aim_lightning.sampling.fast.kernels.top_candidates import _guided, _options


@triton.jit
def _bounds_of_all(a, b, c, d, e, f):
    return tl.maximum(a, d), tl.minimum(b, e), tl.maximum(c, f)


@triton.jit
def _draw(x, places, limited, top_k, top_p, uniform, low, best, number, none, MANY: tl.constexpr):
    """Place of the entry drawn from some in index order, of which `number` are at least `low`, the top_k-th too."""
    count = number
    if limited:
        low, high, count, count_high, before = _search(x, x, top_k * 1.0, low, _beyond(best), number, top_k, True, MANY)
    mass = tl.where(x >= low, tl.exp(x - best), 0.0)
    if top_p < 1:
        wanted = top_p * tl.sum(mass, axis=0)
        low, high, count, count_high, before = _search(x, mass, wanted, low, _beyond(best), count, 0, False, MANY)
        if count - count_high > 1:  # of equal codes only as many as are needed stay, those of the lowest index
            tied = ((x >= low) & (x < high)).to(tl.int32)
            mass = _stay(x, mass, low, high, before, wanted, tl.cumsum(tied, axis=0) - tied)
        else:
            mass = tl.where(x >= low, mass, 0.0)
    cumulative = tl.cumsum(mass.to(tl.float64), axis=0)
    # Entries without mass are never drawn, and the places of the others are in order: the first of those passed.
    passed = (cumulative > uniform * tl.max(cumulative, axis=0)) & (mass > 0)
    return tl.min(tl.where(passed, places, none), axis=0)


@triton.jit
def _draw_from_all(
    logits_ptr, scale, temperature, image, images, limited, top_k, top_p, uniform, low, best, V, GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The code drawn from all logits, where candidates do not decide."""
    cols = tl.arange(0, BLOCK)
    x = _guided(logits_ptr, scale, temperature, image, images, V, cols, GUIDED)
    return _draw(x, cols, limited, top_k, top_p, uniform, low, best, V * 1.0, V - 1, True)


@triton.jit
def choose_kernel(
    logits_ptr, codes_ptr, step_ptr, done_ptr, uniform_ptr, scale_ptr, temperature_ptr, top_k_ptr, top_p_ptr,
    values_ptr, places_ptr, bounds_ptr, V, T, images, GUIDED: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    CHUNKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Top-k, top-p and the draw of `aim_lightning.sampling.filters`, without sorting: one program an image.

    Filters are thresholds, found by search: among the candidates of `sift_kernel`, CHUNKS times SLOTS an image, where
    those from the highest cutoff of all chunks on are at least top_k, so that no other entry can count; else among all
    logits, as also without top_k. Of logits that are not finite the code is any that exists. The last program moves the
    step on.
    """
    image, step = tl.program_id(0).to(tl.int64), tl.load(step_ptr)
    scale, temperature, top_k = _options(step_ptr, scale_ptr, temperature_ptr, top_k_ptr, GUIDED)
    top_p, uniform = tl.load(top_p_ptr), tl.load(uniform_ptr + image * T + step)
    FEW: tl.constexpr = CHUNKS * SLOTS
    few, bounds = image * FEW + tl.arange(0, FEW), bounds_ptr + image * 3 * CHUNKS + tl.arange(0, CHUNKS)
    _wait(CHAINED)
    _start_next(CHAINED)

    x, places = tl.load(values_ptr + few), tl.load(places_ptr + few)
    each = (tl.load(bounds), tl.load(bounds + CHUNKS), tl.load(bounds + 2 * CHUNKS))
    cutoff, least, best = tl.reduce(each, 0, _bounds_of_all)
    if top_k == 1:  # the first of the largest
        top_p, uniform, cutoff, least = top_p * 0 + 1, uniform * 0, tl.maximum(cutoff, best), best
    number = tl.sum((x >= cutoff).to(tl.float32), axis=0)
    if (top_k > 0) & (top_k <= FEW // 2) & (number >= top_k):
        code = _draw(x, places, True, top_k, top_p, uniform, cutoff, best, number, V - 1, False)
    else:
        limited = (top_k > 0) & (top_k < V)
        code = _draw_from_all(
            logits_ptr, scale, temperature, image, images, limited, top_k, top_p, uniform, least, best, V, GUIDED, BLOCK
        )
    tl.store(codes_ptr + image * T + step, tl.minimum(code, V - 1).to(tl.int64))
    if tl.atomic_add(done_ptr, 1) == images - 1:
        tl.store(done_ptr, 0)
        tl.store(step_ptr, step + 1)
