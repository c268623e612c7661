"""From logits to candidates: the largest logits of every part of the vocabulary, gathered by one program per part."""

import triton
import triton.language as tl

from aim_lightning.sampling.fast.kernels.common import _start_next, _wait
from aim_lightning.sampling.fast.kernels.search import _beyond, _search


@triton.jit
def _options(sampled_ptr, scale_ptr, temperature_ptr, top_k_ptr, GUIDED: tl.constexpr):
    """Load guidance, temperature and top_k of this step; argmax (top_k 1) ignores the temperature."""
    top_k = tl.load(top_k_ptr)
    scale = tl.load(scale_ptr + tl.load(sampled_ptr)) if GUIDED else 1.0
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
def _keep(x, cols, values_ptr, indices_ptr, least, best, number, SLOTS: tl.constexpr):
    """Store the largest entries in index order, and return the cutoff from which on all of them are stored."""
    TARGET: tl.constexpr = SLOTS * 3 // 4
    low, high, count, count_high, _ = _search(x, x, TARGET * 1.0, least, _beyond(best), number, SLOTS, True, False)
    if count > SLOTS:  # too many are equal: those above them
        low, count = high, count_high
    slots, free = tl.cumsum((x >= low).to(tl.int32), axis=0) - 1, tl.arange(0, SLOTS)
    kept = (x >= low) & (slots < SLOTS)  # there are never more, unless logits are not finite
    tl.store(values_ptr + slots, x, kept)
    tl.store(indices_ptr + slots, cols, kept)
    tl.store(values_ptr + free, float("-inf"), free >= count)
    return low


@triton.jit
def top_candidates_kernel(
    logits_ptr, sampled_ptr, step_ptr, scale_ptr, temperature_ptr, top_k_ptr, diverged_ptr, values_ptr, indices_ptr,
    bounds_ptr, V, images, GUIDED: tl.constexpr, CHUNK: tl.constexpr, SLOTS: tl.constexpr, CHUNKS: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Apply guidance and temperature, and store the largest of CHUNK logits for `sample_token_kernel`.

    values_ptr, indices_ptr: SLOTS per chunk and CHUNKS chunks per image, in index order; free ones hold -inf. They are
    filled where top_k is small enough, and at least three quarters of them unless entries are equal. bounds_ptr: of
    every image and chunk the cutoff from which on all entries are stored, the least and the largest entry, (images, 3,
    CHUNKS). Logits that are not finite set the flag at diverged_ptr. The step of the layers, whose kernels have all
    ended, becomes the next one.
    """
    _start_next(CHAINED)
    image, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cols = chunk * CHUNK + tl.arange(0, CHUNK)
    scale, temperature, top_k = _options(sampled_ptr, scale_ptr, temperature_ptr, top_k_ptr, GUIDED)
    _wait(CHAINED)
    tl.store(step_ptr, tl.load(sampled_ptr) + 1, mask=image + chunk == 0)
    x = _guided(logits_ptr, scale, temperature, image, images, V, cols, GUIDED)
    bad = tl.where((cols < V) & ~(tl.abs(x) < float("inf")), 1, 0)
    least, best, bad = tl.reduce((tl.where(cols < V, x, float("inf")), x, bad), 0, _least_and_most)
    if bad > 0:
        tl.store(diverged_ptr, 1)
    cutoff = least
    if (top_k > 0) & (top_k <= CHUNKS * SLOTS // 2):
        slots = (image * CHUNKS + chunk) * SLOTS
        number = tl.minimum(CHUNK, V - chunk * CHUNK) * 1.0
        cutoff = _keep(x, cols, values_ptr + slots, indices_ptr + slots, least, best, number, SLOTS)
    bounds_ptr += image * 3 * CHUNKS + chunk
    tl.store(bounds_ptr, cutoff)
    tl.store(bounds_ptr + CHUNKS, least)
    tl.store(bounds_ptr + 2 * CHUNKS, best)
