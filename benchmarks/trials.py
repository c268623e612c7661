"""Shapes that benchmarks/tune_sampling.py tries, for each row of the table those first that promise most.

What promises much is read off the code compiled for an H100 (docs/performance.md, what remains): instructions after a
kernel's wait, registers, shared memory that is left for the next kernel. None of it is measured.
"""

from collections.abc import Iterator

from aim_lightning.sampling.fast.shapes import Mix, Product

# Most registers (any number) and products, in FIRST the first block read early; weights read early.
SUMS, PRODUCTS, FIRST, EARLY = (0, False), (0, True), (0, True, True), (True,)
Change = dict[str, object]


def _project(*values) -> Change:
    return {"project": Product(*values)}


def _out(split: int, *values) -> Change:
    return {"split": split, "out": Product(*values)}


def _mix(*values, **more) -> Change:
    return {"mix": Mix(*values), **more}


def _head(*values) -> Change:
    return {"head": Product(*values)}


def _choose(warps: int) -> Change:
    return {"choose_warps": warps}


ONE = [  # AiM-B, one image
    _mix(1, 64, 3, 8, *SUMS),
    _choose(8),
]
B16 = [
    _mix(8, 32, 3, 8, *FIRST),
    _mix(6, 32, 3, 8, 168, True, True),
    _mix(6, 32, 3, 8, *FIRST),
    _mix(3, 32, 4, 4, *PRODUCTS),
    _mix(6, 16, 4, 8, *FIRST),
    _mix(6, 16, 3, 8, *SUMS),
    _mix(6, 8, 3, 4, *SUMS),
    _mix(3, 32, 3, 4, *FIRST),
    _project(32, 32, 256, 5, 8),
]
B64 = [
    _mix(6, 8, 3, 4, *SUMS),
    _out(2, 64, 32, 128, 5, 4),
    _mix(3, 8, 3, 2, *SUMS),
]
L16 = [
    _mix(4, 32, 4, 4, *FIRST),
    _mix(8, 32, 3, 8, *FIRST),
    _mix(8, 16, 4, 8, *FIRST),
    _head(32, 128, 128, 3, 8),
]
L64 = [
    _head(128, 128, 64, 3, 8),
    _project(128, 64, 64, 4, 8),
]
XL16 = [
    {**_mix(12, 16, 3, 8, 192, True), **_out(4, 32, 64, 256, 3, 8, *EARLY)},
    {**_mix(12, 16, 3, 8, 168, True), **_out(4, 32, 64, 256, 3, 8, *EARLY)},
    {**_mix(12, 16, 3, 8, 192, True), **_out(4, 32, 64, 128, 5, 8)},
    _project(32, 64, 128, 6, 8),
    _mix(12, 16, 3, 8, *PRODUCTS),
    _mix(12, 16, 2, 8, *FIRST),
    _mix(6, 32, 3, 4, *PRODUCTS),
    _mix(6, 16, 4, 4, *FIRST),
    _mix(4, 32, 3, 4, *FIRST),
    _mix(4, 8, 3, 2, *SUMS),
    _head(32, 128, 128, 3, 8),
]
KNOWN = {(768, 2): ONE, (768, 32): B16, (768, 128): B64, (1024, 32): L16, (1024, 128): L64, (1536, 32): XL16}
FETCHES: list[Change] = [{"ahead": codes} for codes in (0, 32, 64, 128)]  # past codes, after those


def changes(d_model: int, rows: int) -> Iterator[Change]:
    """Fields of `Shapes` to set, one trial each; of a width that is not in the table none but the fetches."""
    yield from KNOWN.get((d_model, rows), [])
    yield from FETCHES
