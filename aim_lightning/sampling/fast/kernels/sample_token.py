"""From logits to codes: the filters and random choice of `aim_lightning.sampling.filters`, without sorting.

`top_candidates_kernel` gathers the largest logits of every part of the vocabulary, one program per part.
"""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _start_next, _wait
from aim_lightning.sampling.fast.kernels.search import _beyond, _search, _stay


@triton.jit
def _options(step_ptr, scale_ptr, temperature_ptr, top_k_ptr, GUIDED: tl.constexpr):
    """Load guidance, temperature and top_k of this step; argmax (top_k 1) ignores the temperature."""
    top_k = tl.load(top_k_ptr)
    scale = tl.load(scale_ptr + tl.load(step_ptr)) if GUIDED else 1.0
    return scale, tl.where(top_k == 1, 1.0, tl.load(temperature_ptr)), top_k


@triton.jit
def _guided(logits_ptr, scale, temperature, image, images, V, cols, GUIDED: tl.constexpr):
    """Load an image's logits after guidance and temperature, float32; those beyond the vocabulary are -inf."""
    x = tl.load(logits_ptr + image * V + cols, cols < V, float("-inf")).to(tl.float32)
    if GUIDED:
        null = tl.load(logits_ptr + (image + images) * V + cols, cols < V, float("-inf")).to(tl.float32)
        x = tl.where(cols < tl.where(scale == 1, 0, V), null + scale * (x - null), x)  # scale 1 is exact
    return x / temperature


@triton.jit
def _least_and_most(a, b, c, d, e, f):
    return tl.minimum(a, d), tl.maximum(b, e), tl.maximum(c, f)


@triton.jit
def _keep(x, cols, values_ptr, places_ptr, least, best, number, SLOTS: tl.constexpr):
    """Store the largest entries in index order, and return the cutoff from which on all of them are stored."""
    TARGET: tl.constexpr = SLOTS * 3 // 4
    low, high, count, count_high, _ = _search(x, x, TARGET * 1.0, least, _beyond(best), number, SLOTS, True, False)
    if count > SLOTS:  # too many are equal: those above them
        low, count = high, count_high
    slots, free = tl.cumsum((x >= low).to(tl.int32), axis=0) - 1, tl.arange(0, SLOTS)
    kept = (x >= low) & (slots < SLOTS)  # there are never more, unless logits are not finite
    tl.store(values_ptr + slots, x, kept)
    tl.store(places_ptr + slots, cols, kept)
    tl.store(values_ptr + free, float("-inf"), free >= count)
    return low


@triton.jit
def top_candidates_kernel(
    logits_ptr, step_ptr, scale_ptr, temperature_ptr, top_k_ptr, diverged_ptr, values_ptr, places_ptr, bounds_ptr, V,
    images, GUIDED: tl.constexpr, CHUNK: tl.constexpr, SLOTS: tl.constexpr, CHUNKS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Apply guidance and temperature, and store the largest of CHUNK logits for `sample_token_kernel`.

    values_ptr, places_ptr: SLOTS per chunk and CHUNKS chunks per image, in index order; free ones hold -inf. They are
    filled where top_k is small enough, and at least three quarters of them unless entries are equal. bounds_ptr: of
    every image and chunk the cutoff from which on all entries are stored, the least and the largest entry, (images, 3,
    CHUNKS). Logits that are not finite set the flag at diverged_ptr.
    """
    _start_next(CHAINED)
    image, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cols = chunk * CHUNK + tl.arange(0, CHUNK)
    scale, temperature, top_k = _options(step_ptr, scale_ptr, temperature_ptr, top_k_ptr, GUIDED)
    _wait(CHAINED)
    x = _guided(logits_ptr, scale, temperature, image, images, V, cols, GUIDED)
    bad = tl.where((cols < V) & ~(tl.abs(x) < float("inf")), 1, 0)
    least, best, bad = tl.reduce((tl.where(cols < V, x, float("inf")), x, bad), 0, _least_and_most)
    if bad > 0:
        tl.store(diverged_ptr, 1)
    cutoff = least
    if (top_k > 0) & (top_k <= CHUNKS * SLOTS // 2):
        slots = (image * CHUNKS + chunk) * SLOTS
        number = tl.minimum(CHUNK, V - chunk * CHUNK) * 1.0
        cutoff = _keep(x, cols, values_ptr + slots, places_ptr + slots, least, best, number, SLOTS)
    bounds_ptr += image * 3 * CHUNKS + chunk
    tl.store(bounds_ptr, cutoff)
    tl.store(bounds_ptr + CHUNKS, least)
    tl.store(bounds_ptr + 2 * CHUNKS, best)


@triton.jit
def _bounds_of_all(a, b, c, d, e, f):
    return tl.maximum(a, d), tl.minimum(b, e), tl.maximum(c, f)


@triton.jit
def _sample(x, places, limited, top_k, top_p, uniform, low, best, number, none, MANY: tl.constexpr):
    """Return the place of the sampled entry; entries are in index order, and `number` of them are at least `low`."""
    count = number
    if limited:
        low, high, count, count_high, before = _search(x, x, top_k * 1.0, low, _beyond(best), number, top_k, True, MANY)
    mass = tl.where(x >= low, tl.exp(x - best), 0.0)
    if top_p < 1:
        target = top_p * tl.sum(mass, axis=0)
        low, high, count, count_high, before = _search(x, mass, target, low, _beyond(best), count, 0, False, MANY)
        if count - count_high > 1:  # of equal codes only those needed stay, lowest index first
            tied = ((x >= low) & (x < high)).to(tl.int32)
            mass = _stay(x, mass, low, high, before, target, tl.cumsum(tied, axis=0) - tied)
        else:
            mass = tl.where(x >= low, mass, 0.0)
    # float64, as in `filters.sample_categorical`.
    cumulative = tl.cumsum(mass.to(tl.float64), axis=0)
    # Entries without mass are never sampled, and places are in order: the result is the first one passed.
    passed = (cumulative > uniform * tl.max(cumulative, axis=0)) & (mass > 0)
    return tl.min(tl.where(passed, places, none), axis=0)


@triton.jit
def _sample_from_all(
    logits_ptr, scale, temperature, image, images, limited, top_k, top_p, uniform, low, best, V, GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the code sampled from all logits, for options that the candidates do not cover."""
    cols = tl.arange(0, BLOCK)
    x = _guided(logits_ptr, scale, temperature, image, images, V, cols, GUIDED)
    return _sample(x, cols, limited, top_k, top_p, uniform, low, best, V * 1.0, V - 1, True)


@triton.jit
def sample_token_kernel(
    logits_ptr, codes_ptr, step_ptr, done_ptr, uniform_ptr, scale_ptr, temperature_ptr, top_k_ptr, top_p_ptr,
    values_ptr, places_ptr, bounds_ptr, V, T, images, GUIDED: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    CHUNKS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Sample one code per image as `aim_lightning.sampling.filters`, without sorting: one program per image.

    Filters are thresholds, determined by search: among the candidates of `top_candidates_kernel`, CHUNKS times SLOTS
    per image, where those from the highest cutoff of all chunks on are at least top_k, so that no other entry can
    count; else, and without top_k, among all logits. Of logits that are not finite the code is any valid one. The last
    program increments the step.
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
        code = _sample(x, places, True, top_k, top_p, uniform, cutoff, best, number, V - 1, False)
    else:
        limited = (top_k > 0) & (top_k < V)
        code = _sample_from_all(
            logits_ptr, scale, temperature, image, images, limited, top_k, top_p, uniform, least, best, V, GUIDED, BLOCK
        )
    tl.store(codes_ptr + image * T + step, tl.minimum(code, V - 1).to(tl.int64))
    # The atomic counts finished programs: the step must not change while another program still reads it.
    if tl.atomic_add(done_ptr, 1) == images - 1:
        tl.store(done_ptr, 0)
        tl.store(step_ptr, step + 1)
