"""Matrix products that start copying weights to shared memory before x is computed (bfloat16, near 16 images).

Triton's pipeline loads blocks of x and of the weight together, so that no weight is loaded before the wait. These
kernels are written in Gluon, Triton's lower language, where copies and layouts are explicit.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.ampere.async_copy import (
    async_copy_global_to_shared,
    commit_group,
    wait_group,
)

from aim_lightning.sampling.fast.kernels.common import _start_next, _wait
from aim_lightning.sampling.fast.kernels.in_proj import _activate, _past_taps


@gluon.constexpr_function
def _layout_of_copies(block_k, warps):
    """Return the layout in which a lane copies 16 bytes and a warp complete rows, up to 512 bytes of them."""
    across = min(32, block_k // 8)
    return gl.BlockedLayout([1, 8], [32 // across, across], [warps, 1], [1, 0])


@gluon.constexpr_function
def _layout_of_results(block_n, warps):
    """Return the layout in which a lane stores four columns and a warp complete rows of a block."""
    return gl.BlockedLayout([1, 4], [128 // block_n, block_n // 4], [warps, 1], [1, 0])


@gluon.jit
def _blocks(
    values_ptr, first, count, first_inner, INNER: gl.constexpr, BLOCK: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr, COPIES: gl.constexpr,
):  # fmt: skip
    """Return shared memory for STAGES blocks of x or the weight, and pointers to the first block.

    Rows from `count` on have the values of the last one. Their results are not stored.
    """
    row = gl.arange(0, BLOCK, layout=gl.SliceLayout(1, COPIES))[:, None] + first
    inner = gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, COPIES))[None, :] + first_inner
    shared = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, BLOCK_K], gl.SwizzledSharedLayout(8, 1, 8, [1, 0]))
    return shared, values_ptr + gl.minimum(row, count - 1) * INNER + inner


@gluon.jit
def _copy(blocks, block):
    """Start copying a block into the buffer that was used STAGES blocks before."""
    shared, pointers = blocks
    async_copy_global_to_shared(shared.index(block % shared.shape[0]), pointers + block * shared.shape[2])


@gluon.jit
def _copy_early(weights, EARLY: gl.constexpr):
    """Start copying the first EARLY blocks of the weight."""
    for block in gl.static_range(EARLY):
        _copy(weights, block)
        commit_group()


@gluon.jit
def _streamed_product(weights, xs, BLOCKS: gl.constexpr, EARLY: gl.constexpr, WARPS: gl.constexpr):
    """Return x weight^T, (rows of x, rows of the weight) in float32, after `_copy_early`."""
    BUFFERS: gl.constexpr = xs[0].shape[0]
    ROWS: gl.constexpr = xs[0].shape[1]
    COLS: gl.constexpr = weights[0].shape[1]
    STAGES: gl.constexpr = min(BLOCKS, BUFFERS)
    # Warps tile both axes, so that fewer of them read the same rows of x.
    DOWN: gl.constexpr = min(WARPS, 2, ROWS // 16)
    PRODUCT: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [DOWN, WARPS // DOWN], [16, 8])
    for block in gl.static_range(STAGES):
        if block >= EARLY:
            _copy(weights, block)
        _copy(xs, block)
        commit_group()
    sums = gl.zeros([ROWS, COLS], gl.float32, layout=PRODUCT)
    for block in gl.static_range(BLOCKS):
        # EARLY + STAGES + block groups are committed. All but the last STAGES - 1 are complete, up to those of `block`.
        wait_group(STAGES - 1)
        x = xs[0].index(block % BUFFERS).load(gl.DotOperandLayout(0, PRODUCT, 2))
        weight = weights[0].index(block % BUFFERS).permute((1, 0)).load(gl.DotOperandLayout(1, PRODUCT, 2))
        sums = mma_v2(x, weight, sums)
        if block + STAGES < BLOCKS:
            _copy(weights, block + STAGES)
            _copy(xs, block + STAGES)
        commit_group()  # an empty one at the end, so that the count stays right
    return sums


@gluon.jit
def in_proj_streamed_kernel(
    x_ptr, weight_ptr, ring_ptr, conv_weight_ptr, conv_bias_ptr, dt_bias_ptr, gate_ptr, mixer_x_ptr, b_ptr, c_ptr,
    dt_ptr, step_ptr, M, D: gl.constexpr, INNER: gl.constexpr, H: gl.constexpr, N: gl.constexpr, TAPS: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, EARLY: gl.constexpr,
    WARPS: gl.constexpr, CHAINED: gl.constexpr,
):  # fmt: skip
    """Compute `in_proj_kernel`; EARLY: blocks of the weight that are copied before the previous kernel has ended."""
    K: gl.constexpr = INNER + 2 * N
    COLS: gl.constexpr = INNER + K + H
    COPIES: gl.constexpr = _layout_of_copies(BLOCK_K, WARPS)
    RESULT: gl.constexpr = _layout_of_results(BLOCK_N, WARPS)
    _start_next(CHAINED)
    # Read ahead of `_wait`, as in `in_proj_kernel`: weights, the step and the ring.
    first_row, first = gl.program_id(1) * BLOCK_M, gl.program_id(0) * BLOCK_N
    weights = _blocks(weight_ptr, first, COLS, 0, D, BLOCK_N, BLOCK_K, STAGES, COPIES)
    _copy_early(weights, EARLY)
    rows = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, RESULT)) + first_row
    cols = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, RESULT)) + first
    step, channels = gl.load(step_ptr), cols - INNER
    convolved = (channels >= 0) & (channels < K)
    before, newest = _past_taps(ring_ptr, conv_weight_ptr, conv_bias_ptr, rows, channels, convolved, step, M, K, TAPS)
    dt_bias = gl.load(dt_bias_ptr + channels - K, (channels >= K) & (channels < K + H), 0.0)
    xs = _blocks(x_ptr, first_row, M, 0, D, BLOCK_M, BLOCK_K, STAGES, COPIES)
    _wait(CHAINED)
    raw = gl.convert_layout(_streamed_product(weights, xs, D // BLOCK_K, EARLY, WARPS), RESULT)
    _activate(
        raw, before, newest, dt_bias, gate_ptr, mixer_x_ptr, b_ptr, c_ptr, dt_ptr, ring_ptr, rows, cols, first, step, M,
        INNER, H, N, TAPS, BLOCK_N,
    )  # fmt: skip


@gluon.jit
def linear_streamed_kernel(
    x_ptr, weight_ptr, out_ptr, M, COLS, INNER: gl.constexpr, SPLIT: gl.constexpr, BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, EARLY: gl.constexpr, WARPS: gl.constexpr,
    CHAINED: gl.constexpr,
):  # fmt: skip
    """Compute `linear_kernel`; EARLY as in `in_proj_streamed_kernel`."""
    COPIES: gl.constexpr = _layout_of_copies(BLOCK_K, WARPS)
    RESULT: gl.constexpr = _layout_of_results(BLOCK_N, WARPS)
    _start_next(CHAINED)
    # Weights never change within a sequence, so they may be read ahead of `_wait`.
    first, part, first_row = gl.program_id(0) * BLOCK_N, gl.program_id(1), gl.program_id(2) * BLOCK_M
    weights = _blocks(weight_ptr, first, COLS, part * (INNER // SPLIT), INNER, BLOCK_N, BLOCK_K, STAGES, COPIES)
    _copy_early(weights, EARLY)
    xs = _blocks(x_ptr, first_row, M, part * (INNER // SPLIT), INNER, BLOCK_M, BLOCK_K, STAGES, COPIES)
    _wait(CHAINED)
    sums = _streamed_product(weights, xs, INNER // (SPLIT * BLOCK_K), EARLY, WARPS)
    rows = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, RESULT))[:, None] + first_row
    cols = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, RESULT))[None, :] + first
    out = out_ptr + (part * M + rows) * COLS + cols
    gl.store(out, gl.convert_layout(sums, RESULT).to(out_ptr.dtype.element_ty), (rows < M) & (cols < COLS))
