"""Products of few rows with a weight that is read once."""

import triton
import triton.language as tl


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, out_ptr, M, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """out[part] = x weight^T over one of SPLIT parts of the inner dimension; few rows, so weights are read once.

    A part is whole blocks of DEEP; where they reach beyond INNER, what lies there counts as zero.
    """
    cols = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    rows = tl.program_id(2).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    BLOCKS: tl.constexpr = (INNER + SPLIT * DEEP - 1) // (SPLIT * DEEP)
    inner = part * BLOCKS * DEEP + tl.arange(0, DEEP)
    weights = weight_ptr + cols[None, :] * INNER + inner[:, None]
    xs = x_ptr + rows[:, None] * INNER + inner[None, :]
    row_known, col_known = rows[:, None] < M, cols[None, :] < COLS
    sums = tl.zeros((ROWS, WIDE), tl.float32)
    for _ in range(BLOCKS):
        if INNER % (SPLIT * DEEP) == 0:  # known when compiling: no test of the inner dimension in the common case
            x, weight = tl.load(xs, row_known, 0.0), tl.load(weights, col_known, 0.0)
        else:
            x = tl.load(xs, row_known & (inner[None, :] < INNER), 0.0)
            weight = tl.load(weights, col_known & (inner[:, None] < INNER), 0.0)
        sums += tl.dot(x, weight)
        inner += DEEP
        weights += DEEP
        xs += DEEP
    out = out_ptr + (part * M + rows[:, None]) * COLS + cols[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=row_known & col_known)
