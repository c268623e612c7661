"""Products of few rows with a weight that is read once."""

import triton
import triton.language as tl


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, out_ptr, M, COLS, INNER: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """out[part] = x weight^T over one of SPLIT parts of the inner dimension; few rows, so weights are read once."""
    cols = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    inner = part * (INNER // SPLIT) + tl.arange(0, DEEP)
    weights = weight_ptr + cols[None, :] * INNER + inner[:, None]
    xs = x_ptr + rows[:, None] * INNER + inner[None, :]
    sums = tl.zeros((ROWS, WIDE), tl.float32)
    for _ in range(INNER // SPLIT // DEEP):
        weight = tl.load(weights, mask=cols[None, :] < COLS, other=0.0)
        sums += tl.dot(tl.load(xs, mask=rows[:, None] < M, other=0.0), weight)
        weights += DEEP
        xs += DEEP
    out = out_ptr + (part * M + rows[:, None]) * COLS + cols[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=(rows[:, None] < M) & (cols[None, :] < COLS))
