"""The benchmarks of training: bytes and plan of each kernel, the rows that are measured, and the candidates."""

import argparse

import pytest
from conftest import ROOT

from aim_lightning.models import AiMConfig

pytest.importorskip("triton", reason="Triton is not installed")
AIM_B = AiMConfig.preset("AiM-B")
# Microseconds of a launch in docs/training.md, from the bytes alone at 4.26 TB/s: AiM-B, 256 images.
BYTES_US = {"gate_backward": 285, "convolution_backward": 170, "norm_forward": 142, "convolution_forward": 159}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Make the scripts importable."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_bytes_and_flops_are_those_of_the_documents():
    from kernel_bytes import moved_bytes, product_flops

    moved = moved_bytes(AIM_B, 256)
    for name, expected in BYTES_US.items():
        assert moved[name] / 4.26e6 == pytest.approx(expected, rel=0.005), name
    # Milliseconds of the products at 792 TFLOP/s, 64 images.
    assert product_flops(AIM_B, 64) / 792e9 == pytest.approx(12.7, rel=0.005)


def test_the_plan_adds_up_to_the_parts_of_the_documents():
    """Milliseconds of a step of AiM-B with 64 images on an H200."""
    from kernel_bytes import planned_microseconds

    plan = planned_microseconds(AIM_B, 64, 4.25e6)
    steps = {"norm_forward": 1.1, "norm_backward": 1.8, "gate_backward": 1.8}
    for name, expected in steps.items():
        assert 25e-3 * plan[name] == pytest.approx(expected, rel=0.06), name
    assert 24e-3 * (plan["scan_backward"] + plan["scores_backward"]) == pytest.approx(3.6, rel=0.02)
    assert 24e-3 * (2 * plan["convolution_forward"] + plan["convolution_backward"]) == pytest.approx(2.0, rel=0.03)


def test_measured_kernels_are_compared_with_their_plan(capsys):
    from kernel_bytes import OTHER, PRODUCTS, compare, print_kernels

    kernels = [
        {"name": "scan_forward", "launches": 24, "milliseconds": 2.525},
        {"name": "nvjet_sm90_tst_1", "launches": 48, "milliseconds": 4.1},
        {"name": "void cublasLt::splitKreduce_kernel", "launches": 24, "milliseconds": 0.1},
        {"name": "void reduce_kernel", "launches": 2, "milliseconds": 0.5},
    ]
    rows = {row["name"]: row for row in compare(kernels, AIM_B, 64, 785, 4.25)}
    assert rows["scan_forward"]["microseconds"] == 105.2 and rows["scan_forward"]["ratio_to_plan"] == 1.78
    assert rows[PRODUCTS]["launches"] == 72 and rows[PRODUCTS]["milliseconds"] == 4.2
    assert rows[OTHER]["milliseconds"] == 0.5 and rows["void reduce_kernel"] == kernels[-1]
    print_kernels(list(rows.values()))
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5 and table[0].split()[-1] == "ratio_to_plan"
    print_kernels([])
    assert not capsys.readouterr().out


def test_rows_are_all_combinations():
    from training import parts

    options = argparse.Namespace(
        models=["AiM-B"], batches=["64"], backends=["triton"], num_tokens=["256", "576"], fit=["auto", "64"],
        fit_models=["AiM-XL"], fit_backends=["triton"], checkpointing=["blocks", "all"],
    )  # fmt: skip
    assert parts(options) == [
        ("kernels", "AiM-B", 64, "triton", 256),
        ("kernels", "AiM-B", 64, "triton", 576),
        ("fit", "AiM-XL", "auto", "triton", "blocks"),
        ("fit", "AiM-XL", "auto", "triton", "all"),
        ("fit", "AiM-XL", 64, "triton", "blocks"),
        ("fit", "AiM-XL", 64, "triton", "all"),
    ]


def test_ratios_are_those_of_the_same_number_of_codes():
    from training import add_ratios

    case = {"part": "kernels", "model": "AiM-B", "batch": 64}
    rows = [
        case | {"backend": "mamba_ssm", "num_tokens": 256, "images_per_s": 100},
        case | {"backend": "mamba_ssm", "num_tokens": 576, "images_per_s": 50},
        case | {"backend": "triton", "num_tokens": 576, "images_per_s": 200},
        case | {"backend": "triton", "part": "fit", "images_per_s": 300},
    ]
    add_ratios(rows)
    assert [row.get("ratio_to_mamba_ssm") for row in rows] == [None, None, 4.0, 3.0]


def test_the_near_candidates_are_few_and_start_with_the_current_tile():
    from tune_training import CANDIDATES, NEAR, candidates

    from aim_lightning.models.aim.fused.tiling import TILING

    for kernel in NEAR:
        tiles = candidates(kernel, near=True)
        assert tiles[0] == TILING[kernel] and 4 <= len(tiles) <= 9
        assert set(NEAR[kernel]) <= set(CANDIDATES[kernel])
