"""Shapes that benchmarks/tune_sampling.py tries, for each row of the table those first that promise most.

What promises much is read off the code compiled for an H100 (docs/performance.md, what remains): instructions after a
kernel's wait, registers, shared memory that is left for the next kernel. None of it is measured.
"""

from collections.abc import Iterator

from aim_lightning.sampling.fast.shapes import Mix, Product

SUMS, PRODUCTS, EARLY = (0, False), (0, True), (True,)  # most registers (any number) and products; weights read early
Change = dict[str, object]


def _project(*values) -> Change:
    return {"project": Product(*values)}


def _out(split: int, *values) -> Change:
    return {"split": split, "out": Product(*values)}


def _mix(*values, **more) -> Change:
    return {"mix": Mix(*values), **more}


def _choose(warps: int) -> Change:
    return {"choose_warps": warps}


VECTORS: Change = {"vectors": True}


def _head(*values) -> Change:
    return {"head": Product(*values)}


ONE = [  # AiM-B, one image
    _out(4, 16, 32, 128, 11, 4),
    _mix(1, 64, 3, 8, *SUMS),
    _out(3, 16, 32, 128, 3, 4, *EARLY),
    _choose(8),
    _choose(4),
]
B16 = [
    _project(32, 32, 256, 5, 8),
    _mix(8, 32, 3, 8, 168, True),
    _mix(2, 64, 2, 4, *PRODUCTS),
    _out(4, 32, 32, 128, 4, 4),
    _out(4, 32, 32, 128, 3, 4, *EARLY),
    _mix(8, 64, 2, 8, *PRODUCTS),
    _out(4, 32, 32, 128, 4, 8),
    _mix(8, 32, 2, 8, *PRODUCTS),
    _mix(4, 32, 3, 8, *PRODUCTS),
    _mix(4, 64, 2, 8, *PRODUCTS),
    _choose(8),
]
B64 = [
    _mix(8, 8, 3, 4, *SUMS),
    _out(2, 64, 32, 128, 5, 4),
    _head(128, 128, 64, 3, 8),
    _mix(8, 8, 3, 4, 128, False),
    _mix(4, 4, 3, 2, *SUMS),
    _mix(8, 4, 3, 4, *SUMS),
    _project(64, 64, 128, 4, 8),
]
L16 = [
    _project(32, 64, 128, 6, 8),
    _project(32, 64, 128, 5, 8),
    _mix(8, 32, 3, 8, *PRODUCTS),
    _mix(8, 64, 2, 8, *PRODUCTS),
    _head(32, 128, 128, 3, 8),
    _mix(4, 16, 7, 4, *PRODUCTS),
    _out(4, 32, 32, 128, 5, 4),
    _mix(4, 32, 4, 4, 128, True),
    _out(4, 32, 32, 256, 3, 4, *EARLY),
]
L64 = [
    _mix(8, 8, 3, 4, 128, False),
    _mix(4, 4, 3, 2, *SUMS),
    _out(2, 64, 32, 128, 5, 4),
    _head(128, 128, 64, 3, 8),
    _project(128, 64, 64, 4, 8),
    _project(128, 64, 128, 3, 8),
    _mix(16, 16, 3, 8, 112, True),
    _mix(8, 16, 2, 4, 128, True),
    _out(2, 64, 32, 64, 5, 4),
]
XL16 = [
    _project(32, 64, 128, 6, 8),
    _out(4, 32, 64, 128, 3, 4),
    _out(2, 32, 32, 128, 4, 4),
    _choose(16),
    _head(32, 128, 128, 3, 8),
    _project(32, 64, 256, 4, 8),
    _out(4, 32, 64, 64, 4, 4),
    _out(2, 32, 32, 256, 3, 4),
    _project(32, 64, 128, 6, 4),
    {"ahead_b": 0},
]
KNOWN = {(768, 2): ONE, (768, 32): B16, (768, 128): B64, (1024, 32): L16, (1024, 128): L64, (1536, 32): XL16}
# After those: how far apart addresses are fetched (in values of two bytes; fewer bytes than a cache line may come by
# one), and how many past codes.
FETCHES: list[Change] = [
    *({"ahead": codes} for codes in (0, 32, 64, 128)),
]


def changes(d_model: int, rows: int) -> Iterator[Change]:
    """Fields of `Shapes` to set, one trial each; of a width that is not in the table none but the fetches."""
    yield from KNOWN.get((d_model, rows), [])
    yield from FETCHES
