"""Search for a threshold among values that are not sorted."""

import triton
import triton.language as tl

WAYS = tl.constexpr(8)  # parts of the interval per round: a round's time is mostly its reduction over all warps


@triton.jit
def _add2(a, b, c, d):
    return a + c, b + d


@triton.jit
def _add3(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _add6(a, b, c, d, e, f, g, h, i, j, k, m):
    return a + g, b + h, c + i, d + j, e + k, f + m


@triton.jit
def _closest(a, b, c, d, e, f, g, h, i, j):
    return tl.maximum(a, f), tl.minimum(b, g), tl.minimum(c, h), tl.maximum(d, i), tl.maximum(e, j)


@triton.jit
def _beyond(best):
    """Return a value a few floats above the largest entry."""
    return best + tl.abs(best) * 1e-6 + 1e-30


@triton.jit
def _cuts(low, high, dense):
    """Return WAYS thresholds from `low` on, at equal distances, or denser near `low`, where most entries are."""
    share = tl.arange(0, WAYS).to(tl.float32) * (1.0 / WAYS)
    return low + (high - low) * tl.where(dense, share * share, share)


@triton.jit
def _open(low, high, count, count_high, enough):
    """Return True to continue: several entries in the interval may differ, and more than enough are above `low`.

    Bounds that are not finite end the search: the comparisons fail.
    """
    middle = low + (high - low) * 0.5
    return (count - count_high > 1) & (count > enough) & (middle > low) & (middle < high)


@triton.jit
def _narrow(cuts, counts, masses, target, low, high, count, count_high, before):
    """Return the part of the interval in which the mass of the entries above falls below the target."""
    has = masses >= target
    inf, zero = tl.full(cuts.shape, float("inf"), tl.float32), tl.zeros_like(cuts)
    lows, highs, fewest = tl.where(has, cuts, -inf), tl.where(has, inf, cuts), tl.where(has, counts, inf)
    most, most_mass = tl.where(has, zero, counts), tl.where(has, zero, masses)
    l, h, c, c_high, m_high = tl.reduce((lows, highs, fewest, most, most_mass), 0, _closest)  # noqa: E741
    count_high, before = tl.maximum(count_high, c_high), tl.maximum(before, m_high)
    return tl.maximum(low, l), tl.minimum(high, h), tl.minimum(count, c), count_high, before


@triton.jit
def _round_of_few(x, mass, target, low, high, count, count_high, before, COUNTING: tl.constexpr):
    """Run one round of `_search` that leaves an eighth of the interval: all comparisons are one block."""
    # The first round of a mass search is over the largest entries, whose density falls upwards.
    cuts = _cuts(low, high, (count_high == 0) & (not COUNTING))
    above = tl.where(x[:, None] >= cuts[None, :], 1.0, 0.0)
    if COUNTING:
        counts = tl.sum(above, axis=0)
        masses = counts
    else:
        counts, masses = tl.reduce((above, above * mass[:, None]), 0, _add2)
    return _narrow(cuts, counts, masses, target, low, high, count, count_high, before)


@triton.jit
def _above(x, mass, t1, t2, t3, COUNTING: tl.constexpr):
    """Return mass and number of the entries above each of three thresholds, in one reduction."""
    counts = (tl.where(x >= t1, 1.0, 0.0), tl.where(x >= t2, 1.0, 0.0), tl.where(x >= t3, 1.0, 0.0))
    if COUNTING:
        n1, n2, n3 = tl.reduce(counts, 0, _add3)
        return n1, n2, n3, n1, n2, n3
    masses = (tl.where(x >= t1, mass, 0.0), tl.where(x >= t2, mass, 0.0), tl.where(x >= t3, mass, 0.0))
    return tl.reduce(masses + counts, 0, _add6)


@triton.jit
def _round_of_many(x, mass, target, low, high, count, count_high, before, COUNTING: tl.constexpr):
    """Run one round that leaves a quarter, for more entries than a block of comparisons in registers allows."""
    t1, t2, t3 = low + (high - low) * 0.25, low + (high - low) * 0.5, low + (high - low) * 0.75
    m1, m2, m3, n1, n2, n3 = _above(x, mass, t1, t2, t3, COUNTING)
    if m3 >= target:
        low, count = t3, n3
    elif m2 >= target:
        low, count, high, count_high, before = t2, n2, t3, n3, m3
    elif m1 >= target:
        low, count, high, count_high, before = t1, n1, t2, n2, m2
    else:
        high, count_high, before = t1, n1, m1
    return low, high, count, count_high, before


@triton.jit
def _search(x, mass, target, low, high, count, enough, COUNTING: tl.constexpr, MANY: tl.constexpr):
    """Return bounds of the largest entry T for which the entries x >= T have at least the target mass.

    COUNTING: every entry has the mass 1. The `count` entries x >= low have the target mass; the `count_high` entries
    x >= high, of mass `before`, do not, and at first there are none of those. The search ends when the interval holds
    one entry, or equal ones only, or when no more than `enough` entries are at least `low`.
    """
    count_high, before = count * 0, target * 0
    while _open(low, high, count, count_high, enough):
        if MANY:
            low, high, count, count_high, before = _round_of_many(
                x, mass, target, low, high, count, count_high, before, COUNTING
            )
        else:
            low, high, count, count_high, before = _round_of_few(
                x, mass, target, low, high, count, count_high, before, COUNTING
            )
    return low, high, count, count_high, before


@triton.jit
def _stay(x, mass, low, high, before, target, rank):
    """Return the masses of the entries that stay: all above T, and equal ones until the target mass is reached.

    low, high: bounds of T; before: mass of the entries above T; rank: how many equal ones have a lower index.
    """
    needed = (x >= low) & (x < high) & (before + rank.to(tl.float32) * mass < target)
    return tl.where((x >= high) | needed, mass, 0.0)
