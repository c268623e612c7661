"""Tiles, warps and pipeline stages of the training kernels.

Found by measurement on an H200. They are fixed, never tuned at run time: the rounding of sums depends on them, so a
run's numbers would depend on timing.
"""

import torch

BLOCK = 64  # rows and columns of a tile of C Bᵀ
PART = 128  # states of B that scores_forward reads at a time
TILING: dict[str, dict[str, int]] = {
    "norm_forward": {"ROWS": 2, "num_warps": 4},
    "norm_backward": {"ROWS": 4, "num_warps": 2},
    "convolution_forward": {"ROWS": 8, "COLUMNS": 128, "num_warps": 1},
    "scores_forward": {"num_warps": 4},
    "scan_forward": {"num_warps": 4, "num_stages": 1, "maxnreg": 128},
    "gate_backward": {"ROWS": 4, "COLUMNS": 512, "num_warps": 4},
    "scan_backward": {"num_warps": 4, "num_stages": 1, "maxnreg": 128},
    "scores_backward": {"num_warps": 4, "maxnreg": 168},
    "projections_backward": {"num_warps": 4, "num_stages": 1},
    "convolution_backward": {"ROWS": 8, "COLUMNS": 256, "num_warps": 4},
    "cross_entropy": {"num_warps": 16},
}


def tiling(name: str, dtype: torch.dtype, width: int = 1024) -> dict[str, int]:
    """Return a kernel's tile and launch options for a type of matrix products.

    Tiles of float32 are twice as large. Shared memory is not, so their loads are not pipelined, and registers are not
    limited.

    Args:
        name: of the kernel.
        dtype: of the matrix products.
        width: of a row that a program holds, a power of two; beyond 1,024 it takes more warps, not more registers.
    """
    exact = {"num_stages": 1, "maxnreg": None} if dtype == torch.float32 else {}
    tile = {"num_stages": 3, **TILING[name], **exact}
    return tile | {"num_warps": tile["num_warps"] * max(1, width // 1024)}


def scores_tile(states: int, dtype: torch.dtype) -> dict[str, int]:
    """Return the widths, tile and launch options of scores_forward.

    More than 128 states in three stages, or 256 in float32 at a time, exceed the 99 KB of shared memory of an RTX 30,
    40 or 50.

    Args:
        states: of a head, a power of two.
        dtype: of the matrix products.
    """
    tile = tiling("scores_forward", dtype)
    stages = tile["num_stages"] if states <= PART else min(tile["num_stages"], 2)
    return tile | {"STATE": states, "PART": min(states, PART), "num_stages": stages}
