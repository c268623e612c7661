"""The search for a threshold among values that are not sorted."""

import triton
import triton.language as tl

WAYS = tl.constexpr(8)  # parts of the interval a round: what a round takes is mostly its reduction over all warps


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
    """Above the largest entry, by some neighbouring floats."""
    return best + tl.abs(best) * 1e-6 + 1e-30


@triton.jit
def _cuts(low, high, dense):
    """WAYS thresholds from `low` on, at equal distances, or closer to each other near `low` where most entries are."""
    share = tl.arange(0, WAYS).to(tl.float32) * (1.0 / WAYS)
    return low + (high - low) * tl.where(dense, share * share, share)


@triton.jit
def _open(low, high, count, count_high, enough):
    """Whether to search on: several entries in the interval, which may differ, and more than enough above its start.

    Bounds that are not finite end the search: the comparisons fail.
    """
    middle = low + (high - low) * 0.5
    return (count - count_high > 1) & (count > enough) & (middle > low) & (middle < high)


@triton.jit
def _narrow(cuts, counts, masses, wanted, low, high, count, count_high, before):
    """The part of the interval in which the mass of the entries above falls below what is wanted."""
    has = masses >= wanted
    inf, zero = tl.full(cuts.shape, float("inf"), tl.float32), tl.zeros_like(cuts)
    lows, highs, fewest = tl.where(has, cuts, -inf), tl.where(has, inf, cuts), tl.where(has, counts, inf)
    most, most_mass = tl.where(has, zero, counts), tl.where(has, zero, masses)
    l, h, c, c_high, m_high = tl.reduce((lows, highs, fewest, most, most_mass), 0, _closest)  # noqa: E741
    count_high, before = tl.maximum(count_high, c_high), tl.maximum(before, m_high)
    return tl.maximum(low, l), tl.minimum(high, h), tl.minimum(count, c), count_high, before


@triton.jit
def _round_of_few(x, mass, wanted, low, high, count, count_high, before, COUNTING: tl.constexpr):
    """One round of `_search` that leaves an eighth of the interval: all comparisons are one block."""
    # Masses are first looked for among the largest entries of all, whose tail thins out upwards.
    cuts = _cuts(low, high, (count_high == 0) & (not COUNTING))
    above = tl.where(x[:, None] >= cuts[None, :], 1.0, 0.0)
    if COUNTING:
        counts = tl.sum(above, axis=0)
        masses = counts
    else:
        counts, masses = tl.reduce((above, above * mass[:, None]), 0, _add2)
    return _narrow(cuts, counts, masses, wanted, low, high, count, count_high, before)


@triton.jit
def _above(x, mass, t1, t2, t3, COUNTING: tl.constexpr):
    """Mass and number of the entries of at least each of three thresholds, in one reduction."""
    counts = (tl.where(x >= t1, 1.0, 0.0), tl.where(x >= t2, 1.0, 0.0), tl.where(x >= t3, 1.0, 0.0))
    if COUNTING:
        n1, n2, n3 = tl.reduce(counts, 0, _add3)
        return n1, n2, n3, n1, n2, n3
    masses = (tl.where(x >= t1, mass, 0.0), tl.where(x >= t2, mass, 0.0), tl.where(x >= t3, mass, 0.0))
    return tl.reduce(masses + counts, 0, _add6)


@triton.jit
def _round_of_many(x, mass, wanted, low, high, count, count_high, before, COUNTING: tl.constexpr):
    """One that leaves a quarter, for so many entries that a block of comparisons would not fit into registers."""
    t1, t2, t3 = low + (high - low) * 0.25, low + (high - low) * 0.5, low + (high - low) * 0.75
    m1, m2, m3, n1, n2, n3 = _above(x, mass, t1, t2, t3, COUNTING)
    if m3 >= wanted:
        low, count = t3, n3
    elif m2 >= wanted:
        low, count, high, count_high, before = t2, n2, t3, n3, m3
    elif m1 >= wanted:
        low, count, high, count_high, before = t1, n1, t2, n2, m2
    else:
        high, count_high, before = t1, n1, m1
    return low, high, count, count_high, before


@triton.jit
def _search(x, mass, wanted, low, high, count, enough, COUNTING: tl.constexpr, MANY: tl.constexpr):
    """Bounds of the largest entry T for which the entries x >= T have at least the wanted mass; COUNTING: 1 each.

    The `count` entries x >= low have it, the `count_high` entries x >= high, of mass `before`, have not; at first there
    are none of those. It ends when the interval holds one entry, or equal ones alone, or when no more than `enough`
    entries are at least `low`.
    """
    count_high, before = count * 0, wanted * 0
    while _open(low, high, count, count_high, enough):
        if MANY:
            low, high, count, count_high, before = _round_of_many(
                x, mass, wanted, low, high, count, count_high, before, COUNTING
            )
        else:
            low, high, count, count_high, before = _round_of_few(
                x, mass, wanted, low, high, count, count_high, before, COUNTING
            )
    return low, high, count, count_high, before


@triton.jit
def _stay(x, mass, low, high, before, wanted, rank):
    """Masses of the entries that stay, all above T and those equal ones before which the wanted mass is not reached.

    low, high: bounds of T; before: mass of the entries above T; rank: how many equal ones have a lower index.
    """
    needed = (x >= low) & (x < high) & (before + rank.to(tl.float32) * mass < wanted)
    return tl.where((x >= high) | needed, mass, 0.0)
