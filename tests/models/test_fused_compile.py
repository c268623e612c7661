"""The training kernels compile for an H100 without one, and fit the shared memory of every GPU from Ampere on."""

from importlib import import_module

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from aim_lightning.models.aim.fused.tiling import BLOCK, scores_tile, tiling  # noqa: E402

# KB of shared memory of one program by compute capability: A100; RTX 30; RTX 40; H100; RTX 50.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
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
    ("modulated_norm", "norm_forward", EXTREMES, "fp32"),
    ("modulated_norm", "norm_backward", EXTREMES, "fp32"),
    ("convolution", "convolution_forward", AIM_B, "bf16"),
    ("convolution", "convolution_backward", AIM_B, "bf16"),
    ("dual_scan", "scores_forward", EXTREMES, "fp32"),
    ("dual_scan", "scan_forward", EXTREMES, "fp32"),
    ("dual_scan", "scan_forward", AIM_B, "bf16"),
    ("dual_scan_backward", "gate_backward", AIM_B, "bf16"),
    ("dual_scan_backward", "scan_backward", EXTREMES, "fp32"),
    ("dual_scan_backward", "scan_backward", AIM_B, "bf16"),
    ("dual_scan_backward", "scores_backward", EXTREMES, "fp32"),
    ("dual_scan_backward", "projections_backward", EXTREMES, "fp32"),
    ("dual_scan_backward", "projections_backward", EXTREMES, "bf16"),
    ("cross_entropy", "cross_entropy", EXTREMES | {"WIDTH": 65536}, "bf16"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name", "sizes", "low"), CASES)
def test_it_compiles_for_sm_90_and_fits(module, name, sizes, low):
    assert _compile(module, name, sizes, low, 90).metadata.shared <= SHARED[90] * 1024


@pytest.mark.long
@pytest.mark.parametrize("low", ["bf16", "fp32"])
@pytest.mark.parametrize("capability", SHARED)
def test_one_table_fits_every_gpu(capability, low, monkeypatch, tmp_path):
    """Heads of 128 channels, 256 states, widths of 8,192; sizes of AiM-B in bf16 are smaller."""
    backend = import_module("triton.backends.nvidia.compiler").CUDABackend
    monkeypatch.setattr(backend, "make_cubin", lambda *_, **__: b"")  # the sizes are known before the assembler runs
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # no incomplete kernel in the user's cache
    kernels = {(module, name) for module, name, *_ in CASES}
    sizes = {name: _compile(module, name, EXTREMES, low, capability).metadata.shared for module, name in kernels}
    assert {name: size for name, size in sizes.items() if size > SHARED[capability] * 1024} == {}


def _compile(module: str, name: str, sizes: dict, low: str, capability: int):
    """Compile a kernel with its tile for a GPU that the machine lacks."""
    kernel = getattr(import_module(f"aim_lightning.models.aim.fused.kernels.{module}"), name)
    dtype = torch.float32 if low == "fp32" else torch.bfloat16
    width = sizes["WIDTH"] if "norm" in name else 1024
    tile = scores_tile(sizes["STATE"], dtype) if name == "scores_forward" else tiling(name, dtype, width)
    options = {key: tile.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in tile}
    constants = {arg: value for arg, value in {**sizes, **FLAGS, **OTHERS, **tile}.items() if arg in kernel.arg_names}
    types = {arg: _kind(arg, low) for arg in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    positions = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    # Multiples of 16, as of AiM's sizes: loads are then pipelined, which takes more shared memory.
    divisible = [arg for arg in kernel.arg_names if types[arg].startswith("*") or types[arg] == "i32"]
    aligned = {(kernel.arg_names.index(arg),): [["tt.divisibility", 16]] for arg in divisible}
    source = ASTSource(kernel, types, positions, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _kind(name: str, low: str) -> str:
    if name == "targets":
        return "*i64"
    if name in POINTERS.split():
        return f"*{low}" if name in LOW.split() else "*fp32"
    return "fp32" if name in ("eps", "factor") else "i32"
