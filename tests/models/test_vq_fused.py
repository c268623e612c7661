"""The VQ decoder for inference on a GPU: its kernels through Triton's interpreter, and compiled for an H100."""

import pytest
import torch
from helpers import relative, script_output

triton = pytest.importorskip("triton", reason="Triton is not installed")

from aim_lightning.models.vq import fused  # noqa: E402
from aim_lightning.models.vq.coder import upsample  # noqa: E402

LOW = ("x", "result")  # bfloat16; all other pointers are to float32
POINTERS = (*LOW, "shift", "sums", "weight", "bias")


def test_the_kernels_equal_pytorch_up_to_bfloat16():
    report = script_output("models/vq_fused_on_cpu.py", TRITON_INTERPRET="1")
    assert len(report["norms"]) == 6 and max(report["norms"]) <= 4e-3  # the result's own rounding is 2e-3
    assert report["fused"] <= 1.2 * report["autocast"]
    assert report["unchanged"]


def test_upsampling_is_folded_into_the_convolution():
    torch.manual_seed(0)
    level, x = upsample(12), torch.randn(2, 12, 5, 3)
    with torch.no_grad():
        assert relative(fused.fold_upsampling(level.conv)(x), level(x)) <= 1e-6


@pytest.mark.parametrize("channels", [128, 512])
@pytest.mark.parametrize("name", ["norm_sums", "norm_silu"])
def test_it_compiles_for_sm_90(name, channels):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(fused, name)
    sizes = {"HAS_SHIFT": True, "CHANNELS": channels, "GROUPS": 32, "ROWS": fused.TILE // channels, "PARTS": 64}
    sizes = {name: value for name, value in sizes.items() if name in kernel.arg_names}
    types = {arg: ("*bf16" if arg in LOW else "*fp32") if arg in POINTERS else "i32" for arg in kernel.arg_names}
    types |= {"eps": "fp32"} if "eps" in types else {}
    types |= dict.fromkeys(sizes, "constexpr")
    positions = {(kernel.arg_names.index(arg),): value for arg, value in sizes.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg in POINTERS}
    source = ASTSource(kernel, types, positions, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert compiled.metadata.shared <= 99 * 1024  # fits smaller GPUs too
