"""Bytes that each training kernel moves, and the time that it was planned to take.

Sizes: images B, codes L, T = B * L rows, d = d_model, I = d_inner, N = d_state, H heads, K = I + 2 N convolved
columns, V = vocabulary. Activations have two bytes (bf16). Residuals, decays and sums have four.
Every value counts once per kernel that reads or writes it: what the caches serve again is not counted.
"""

from aim_lightning.models import AiMConfig
from aim_lightning.models.aim.fused import loss, mixer, norm
from aim_lightning.models.aim.fused.tiling import BLOCK

PRODUCTS = "matrix products"
PRODUCT_NAMES = ("nvjet", "gemm", "cutlass", "splitKreduce")  # in the names of the kernels of cuBLAS
OPTIMIZER = "AdamW and clipping"
OPTIMIZER_NAMES = ("multi_tensor_apply",)
OTHER = "other kernels"
STREAMING, FORWARD_SCAN, BACKWARD_SCAN, PRODUCT_SHARE = 0.8, 0.6, 0.24, 0.88  # planned shares of the measured rates
COLUMNS = ("name", "launches", "milliseconds", "microseconds", "megabytes", "bytes_us", "plan_us", "ratio_to_plan")


def moved_bytes(config: AiMConfig, images: int) -> dict[str, float]:
    """Return the bytes that one launch of each kernel moves."""
    d, inner, heads, state = config.d_model, config.d_inner, config.nheads, config.d_state
    rows, convolved = images * config.num_tokens, config.conv_dim
    blocks = -(-config.num_tokens // BLOCK)
    # Stored once per image: tiles of C Bᵀ on and below the diagonal in bf16, sums of rows below it in float32.
    tiles = images * blocks * (blocks + 1) // 2 * BLOCK**2 * 2
    row_sums = images * heads * blocks * (blocks - 1) // 2 * BLOCK * 4
    chunk_sums = 12 * d / norm.CHUNK  # three float32 sums per chunk of rows
    return {
        "norm_forward": rows * (12 * d + 8),  # raw, residual, new residual, u; RMS and row scale
        "norm_backward": rows * (18 * d + chunk_sums + 12),  # two gradients, residual, raw; both gradients written
        "sum_chunks": rows * chunk_sums + images * 16 * d,
        "decays_forward": rows * 22 * heads,  # dt; five planes of float32
        "convolution_forward": rows * (4 * convolved + 2 * inner + 4 * heads),  # x, B, C twice; x with its decay
        "scores_forward": rows * 4 * state + tiles,
        "scan_forward": rows * (8 * inner + 12 * heads) + tiles,  # x, x with its decay, z, g; decays, squares
        "row_scales": rows * 4 * (heads + 1),
        "gate_backward": rows * (12 * inner + 4 * heads + 8),  # dg, g, z; dz, dy, dy with its decay
        "scan_backward": rows * (10 * inner + 24 * heads) + row_sums + tiles,  # x and dy, both twice; dx
        "scores_backward": rows * (8 * inner + 8 * heads) + tiles,  # x and dy, both twice
        "projections_backward": rows * 8 * state + tiles,  # B and C; their gradients
        "steps_backward": rows * 20 * heads + row_sums,
        "convolution_backward": rows * convolved * (6 + 4 * (config.d_conv + 1) / mixer.CHUNK),
        "cross_entropy": min(rows, loss.CHUNK) * 4 * config.vocab_size,  # logits read and overwritten
    }


def planned_microseconds(config: AiMConfig, images: int, bytes_per_us: float) -> dict[str, float]:
    """Return the planned time of a launch of each kernel that the plan names.

    The plan (docs/training.md) gives bytes and shares of the copy rate. It has no convolution in the forward pass,
    whose two launches share the time of one here. Both kernels of the backward scan share a plan, by their traffic.

    Args:
        config: sizes of the network.
        images: of the batch.
        bytes_per_us: measured copy rate, read and written bytes per microsecond.
    """
    rows, d, inner = images * config.num_tokens, config.d_model, config.d_inner
    scan = 6 * inner / BACKWARD_SCAN
    cost = {  # bytes of a row at the full copy rate
        "norm_forward": 12 * d / STREAMING,
        "norm_backward": 18 * 1.03 * d / STREAMING,
        "convolution_forward": 4 * inner / STREAMING / 2,
        "scan_forward": 6 * inner / FORWARD_SCAN,
        "gate_backward": 10 * inner / STREAMING,
        "scan_backward": scan * 5.4 / 9.2,
        "scores_backward": scan * 3.8 / 9.2,
        "convolution_backward": 6 * config.conv_dim / STREAMING,
    }
    plan = {name: rows * per_row / bytes_per_us for name, per_row in cost.items()}
    plan["projections_backward"] = 15 * rows / 16384  # 15 µs for 64 images of 256 codes
    plan["cross_entropy"] = min(rows, loss.CHUNK) * 10 * config.vocab_size / STREAMING / bytes_per_us
    return plan


def product_flops(config: AiMConfig, images: int) -> float:
    """Return the FLOP of a step's matrix products: layers and head, forward and backward."""
    projected = config.d_inner + config.conv_dim + config.nheads
    layer = config.d_model * (projected + config.d_inner + 2 * config.d_intermediate)
    weights = config.n_layer * layer + config.vocab_size * config.d_model
    return 6 * images * config.num_tokens * weights


def compare(
    kernels: list[dict], config: AiMConfig, images: int, products_tflops: float, copy_tb_per_s: float
) -> list[dict]:
    """Add bytes and plan to the measured kernels of a step; sum up the products and the kernels without a name here.

    Args:
        kernels: rows with name, launches and milliseconds of a step.
        config: sizes of the network.
        images: of the batch.
        products_tflops: measured rate of matrix products.
        copy_tb_per_s: measured rate of copies, read and written.
    """
    bytes_per_us = copy_tb_per_s * 1e6
    moved, plan = moved_bytes(config, images), planned_microseconds(config, images, bytes_per_us)
    rows, others = [], {PRODUCTS: [], OPTIMIZER: [], OTHER: []}
    for kernel in kernels:
        if size := moved.get(kernel["name"]):
            launch = {"megabytes": round(size / 1e6, 1), "bytes_us": round(size / bytes_per_us, 1)}
            rows.append(kernel | _ratio(kernel, plan.get(kernel["name"])) | launch)
        else:
            others[_group(kernel["name"])].append(kernel)
    for name, members in others.items():
        row = {"name": name} | {key: sum(kernel[key] for kernel in members) for key in ("launches", "milliseconds")}
        products = product_flops(config, images) / products_tflops / 1e6 / PRODUCT_SHARE if name == PRODUCTS else None
        rows.append(row | _ratio(row, products and products / max(row["launches"], 1)))
    return [*sorted(rows, key=lambda row: -row["milliseconds"]), *others[OTHER]]


def print_kernels(rows: list[dict]) -> None:
    """Print the rows that have a time per launch as a table."""
    table = [{name: name for name in COLUMNS}, *(row for row in rows if "microseconds" in row)] if rows else []
    for row in table:
        numbers = (f"{row.get(name, '-')!s:>13}" for name in COLUMNS[1:])
        print(f"{row['name']:22s}", *numbers, flush=True)


def _group(name: str) -> str:
    groups = {PRODUCTS: PRODUCT_NAMES, OPTIMIZER: OPTIMIZER_NAMES}
    return next((group for group, parts in groups.items() if any(part in name for part in parts)), OTHER)


def _ratio(row: dict, plan: float | None) -> dict:
    """Return microseconds per launch, and those planned with the ratio where there is a plan."""
    microseconds = 1e3 * row["milliseconds"] / max(row["launches"], 1)
    result = {"milliseconds": round(row["milliseconds"], 3), "microseconds": round(microseconds, 1)}
    return result | ({"plan_us": round(plan, 1), "ratio_to_plan": round(microseconds / plan, 2)} if plan else {})
