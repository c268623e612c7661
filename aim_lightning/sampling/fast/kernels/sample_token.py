"""From candidates to codes: the filters and random choice of `aim_lightning.sampling.filters`, without sorting."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.candidates import _guided, _options
from aim_lightning.sampling.fast.kernels.common import _enter, _start_next, _wait
from aim_lightning.sampling.fast.kernels.search import _beyond, _search, _stay


@triton.jit
def _bounds_of_all(a, b, c, d, e, f):
    return tl.maximum(a, d), tl.minimum(b, e), tl.maximum(c, f)


@triton.jit
def _sample(x, indices, limited, top_k, top_p, uniform, low, best, number, none, MANY: tl.constexpr):
    """Return the index of the sampled entry; entries are in index order, and `number` of them are at least `low`."""
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
    # Entries without mass are never sampled, and indices are in order: the result is the first one passed.
    passed = (cumulative > uniform * tl.max(cumulative, axis=0)) & (mass > 0)
    return tl.min(tl.where(passed, indices, none), axis=0)


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
    logits_ptr, codes_ptr, sampled_ptr, done_ptr, uniform_ptr, scale_ptr, temperature_ptr, top_k_ptr, top_p_ptr,
    values_ptr, indices_ptr, bounds_ptr, offset_ptr, words_ptr, positions_ptr, residual_ptr, weight_ptr, rows_ptr,
    h_ptr, V, T, images, D, eps, GUIDED: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, MODULATED: tl.constexpr, POSITIONS: tl.constexpr, BLOCK_D: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Sample one code per image as `aim_lightning.sampling.filters`, without sorting: one program per image.

    Filters are thresholds, determined by search: among the candidates of `top_candidates_kernel`, CHUNKS times SLOTS
    per image, where those from the highest cutoff of all chunks on are at least top_k, so that no other entry can
    count; else, and without top_k, among all logits. Of logits that are not finite the code is any valid one. The code
    and its position are the next step's input. The last program increments the number of sampled codes.
    """
    image, step = tl.program_id(0).to(tl.int64), tl.load(sampled_ptr)
    scale, temperature, top_k = _options(sampled_ptr, scale_ptr, temperature_ptr, top_k_ptr, GUIDED)
    top_p, uniform = tl.load(top_p_ptr), tl.load(uniform_ptr + image * T + step)
    FEW: tl.constexpr = CHUNKS * SLOTS
    few, bounds = image * FEW + tl.arange(0, FEW), bounds_ptr + image * 3 * CHUNKS + tl.arange(0, CHUNKS)
    _wait(CHAINED)
    _start_next(CHAINED)

    x, indices = tl.load(values_ptr + few), tl.load(indices_ptr + few)
    each = (tl.load(bounds), tl.load(bounds + CHUNKS), tl.load(bounds + 2 * CHUNKS))
    cutoff, least, best = tl.reduce(each, 0, _bounds_of_all)
    if top_k == 1:  # the first of the largest
        top_p, uniform, cutoff, least = top_p * 0 + 1, uniform * 0, tl.maximum(cutoff, best), best
    number = tl.sum((x >= cutoff).to(tl.float32), axis=0)
    if (top_k > 0) & (top_k <= FEW // 2) & (number >= top_k):
        code = _sample(x, indices, True, top_k, top_p, uniform, cutoff, best, number, V - 1, False)
    else:
        limited = (top_k > 0) & (top_k < V)
        code = _sample_from_all(
            logits_ptr, scale, temperature, image, images, limited, top_k, top_p, uniform, least, best, V, GUIDED, BLOCK
        )
    code = tl.minimum(code, V - 1).to(tl.int64)
    tl.store(codes_ptr + image * T + step, code)
    if step + 1 < T:
        cols = tl.arange(0, BLOCK_D)
        word = tl.load(words_ptr + code * D + cols, cols < D, 0.0).to(tl.float32)
        if POSITIONS:
            word += tl.load(positions_ptr + (step + tl.load(offset_ptr)) * D + cols, cols < D, 0.0).to(tl.float32)
        for branch in tl.static_range(2 if GUIDED else 1):
            row = image + branch * images
            _enter(word, row, cols, cols < D, residual_ptr, weight_ptr, rows_ptr, h_ptr, D, eps, ROWS, MODULATED)
    # The atomic counts finished programs: the number must not change while another program still reads it.
    if tl.atomic_add(done_ptr, 1) == images - 1:
        tl.store(done_ptr, 0)
        tl.store(sampled_ptr, step + 1)
