"""The training kernels compile for an H100 without one, and fit its shared memory."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from aim_lightning.models.aim.fused.tiling import BLOCK, tiling  # noqa: E402

SHARED_BYTES = 227 * 1024  # of one program on sm_90
# Pointers to values in the type of the matrix products; all others point to float32.
LOW = "u raw du d_raw post scaled z cb g dg dz dy scaled_dy d_cb d_post xbc d_xbc dt d_dt d_pre logits"
POINTERS = (
    "raw row_scale gate residual weight shift scale new_residual u rms d_new_residual du d_residual d_raw d_row_scale "
    "sums d_shift d_scale d_gate d_weight xbc bias post scaled d_post d_xbc d_pre dt dt_bias a_log decays cb z skip g "
    "squares dg from_start dz dy scaled_dy row_sums column_sums diagonal_sums diagonal_decay d_skip d_cb d_dt "
    "per_image logits targets losses"
)
AIM_B = {"CHANNELS": 64, "STATE": 128, "HEADS": 32, "WIDTH": 1024}
EXTREMES = {"CHANNELS": 128, "STATE": 256, "HEADS": 256, "WIDTH": 8192}
FLAGS = {"HAS_RESIDUAL": True, "HAS_ROW_SCALE": True, "HAS_GATE": True, "HAS_SHIFT": True, "HAS_D_RESIDUAL": True}
OTHERS = {"TAPS": 4, "UNIT": 8, "GROUP": 64, "WITH_GRADIENT": True, "BLOCK": BLOCK}
CASES = [  # (module, kernel, sizes, type): the largest tiles, and AiM-B's own
    ("modulated_norm", "norm_backward", EXTREMES, "fp32"),
    ("convolution", "convolution_forward", AIM_B, "bf16"),
    ("convolution", "convolution_backward", AIM_B, "bf16"),
    ("dual_scan", "scores_forward", EXTREMES, "fp32"),
    ("dual_scan", "scan_forward", EXTREMES, "fp32"),
    ("dual_scan", "scan_forward", AIM_B, "bf16"),
    ("dual_scan_backward", "scan_backward", EXTREMES, "fp32"),
    ("dual_scan_backward", "scan_backward", AIM_B, "bf16"),
    ("dual_scan_backward", "scores_backward", EXTREMES, "fp32"),
    ("dual_scan_backward", "projections_backward", EXTREMES, "fp32"),
    ("dual_scan_backward", "projections_backward", EXTREMES, "bf16"),
    ("cross_entropy", "cross_entropy", {"WIDTH": 65536}, "bf16"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name", "sizes", "low"), CASES)
def test_it_compiles_for_sm_90_and_fits(module, name, sizes, low):
    import importlib

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"aim_lightning.models.aim.fused.kernels.{module}"), name)
    width = sizes["WIDTH"] if "norm" in name else 1024
    tile = tiling(name, torch.float32 if low == "fp32" else torch.bfloat16, width)
    options = {key: tile.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in tile}
    constants = {arg: value for arg, value in {**sizes, **FLAGS, **OTHERS, **tile}.items() if arg in kernel.arg_names}
    types = {arg: _kind(arg, low) for arg in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    positions = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if types[arg].startswith("*")}
    source = ASTSource(kernel, types, positions, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.metadata.shared <= SHARED_BYTES


def _kind(name: str, low: str) -> str:
    if name == "targets":
        return "*i64"
    if name in POINTERS.split():
        return f"*{low}" if name in LOW.split() else "*fp32"
    return "fp32" if name in ("eps", "factor") else "i32"
