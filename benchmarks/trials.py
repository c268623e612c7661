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
ONE = [  # AiM-B, one image
    _choose(16),
    _project(16, 32, 256, 3, 4, *EARLY),
    _out(3, 16, 32, 128, 3, 4, *EARLY),
    _mix(1, 64, 3, 8, *SUMS),
    _mix(1, 64, 3, 8, *SUMS, ahead=256, ahead_b=256),
    _project(16, 32, 256, 3, 8),
    _out(4, 16, 32, 128, 3, 4, *EARLY),
    VECTORS,
    _choose(32),
    _mix(1, 64, 3, 4, *SUMS),
    _out(4, 16, 16, 128, 4, 4),
    _project(16, 16, 256, 3, 4, *EARLY),
]
B16 = [
    _project(16, 32, 256, 3, 4, *EARLY),
    _project(32, 32, 256, 4, 8),
    _out(4, 16, 32, 128, 3, 4, *EARLY),
    _choose(16),
    VECTORS,
    _mix(2, 16, 3, 4, *SUMS, ahead=64, ahead_b=64),
    _out(4, 32, 32, 128, 5, 8),
    _mix(4, 32, 3, 4, *PRODUCTS),
    _mix(4, 8, 3, 4, *SUMS, ahead=64, ahead_b=64),
    _project(16, 32, 256, 3, 4),
    _out(3, 16, 32, 128, 3, 4, *EARLY),
    _project(16, 64, 256, 3, 8, *EARLY),
    _choose(32),
    _mix(2, 16, 3, 4, *SUMS),
    _out(4, 32, 32, 128, 4, 4),
]
B64 = [
    _mix(4, 8, 3, 2, 144, False),
    _project(64, 32, 128, 4, 8),
    _out(2, 64, 32, 128, 4, 8),
    _mix(4, 8, 3, 2, *SUMS, ahead=32, ahead_b=32),
    _choose(16),
    VECTORS,
    _project(64, 64, 128, 3, 8),
    _out(2, 64, 16, 128, 4, 8),
    _project(32, 32, 256, 3, 8),
    _out(4, 64, 32, 128, 4, 8),
    _mix(2, 8, 3, 1, *SUMS),
    _mix(4, 16, 3, 4, *SUMS),
]
L16 = [
    VECTORS,
    _project(32, 64, 128, 4, 8),
    _mix(4, 32, 3, 4, *PRODUCTS),
    _out(4, 32, 32, 512, 3, 8, *EARLY),
    _out(4, 32, 32, 128, 4, 4),
    _choose(16),
    _project(32, 32, 256, 3, 8),
    _project(16, 32, 256, 3, 8, *EARLY),
    _out(4, 32, 32, 128, 5, 8),
    _mix(4, 16, 3, 4, *SUMS, ahead=64, ahead_b=64),
    _mix(4, 8, 3, 4, *SUMS, ahead=64, ahead_b=64),
    _mix(4, 32, 3, 8, *PRODUCTS),
    _choose(32),
    _project(32, 32, 128, 5, 8),
]
L64 = [
    _project(64, 64, 128, 3, 8),
    _mix(8, 8, 3, 2, *SUMS),
    _out(2, 64, 32, 128, 4, 8),
    VECTORS,
    _choose(16),
    _mix(8, 16, 3, 8, *PRODUCTS),
    _mix(4, 8, 3, 2, 144, False),
    _project(64, 32, 128, 4, 8),
    _out(4, 64, 32, 128, 4, 8),
    _mix(8, 16, 3, 4, *PRODUCTS),
    _project(128, 64, 64, 4, 8),
    _mix(4, 16, 3, 4, *PRODUCTS),
]
XL16 = [
    VECTORS,
    VECTORS,
    _mix(4, 32, 3, 4, *PRODUCTS),
    _project(32, 64, 128, 4, 8),
    _out(4, 32, 32, 128, 4, 4),
    _mix(4, 8, 3, 4, *SUMS, ahead=64, ahead_b=64),
    _choose(16),
    _out(4, 32, 32, 128, 4, 8),
    _project(32, 32, 256, 3, 8),
    _mix(4, 16, 3, 4, *SUMS, ahead=64, ahead_b=64),
    _out(3, 32, 32, 1024, 3, 8, *EARLY),
    _mix(4, 32, 4, 4, *PRODUCTS),
    _mix(4, 32, 3, 8, *PRODUCTS),
    _mix(8, 16, 3, 4, *PRODUCTS),
    _choose(32),
]
KNOWN = {(768, 2): ONE, (768, 32): B16, (768, 128): B64, (1024, 32): L16, (1024, 128): L64, (1536, 32): XL16}
# After those: how far apart addresses are fetched (in values of two bytes; fewer bytes than a cache line may come by
# one), and how many past codes.
FETCHES: list[Change] = [
    *({"line": line} for line in (32, 16, 8)),
    *({"ahead_b": codes} for codes in (64, 128)),
    *({"ahead": codes} for codes in (0, 64, 128, 256)),
]


def changes(d_model: int, rows: int) -> Iterator[Change]:
    """Fields of `Shapes` to set, one trial each; of a width that is not in the table none but the fetches."""
    yield from KNOWN.get((d_model, rows), [])
    yield from FETCHES
