"""The fast decoder's kernels compile for an H100 without one: Triton brings the whole compiler along."""

import pytest

triton = pytest.importorskip("triton", reason="Triton exists for Linux alone")
BF16 = (
    "x_ptr",
    "weight_ptr",
    "zxbcdt_ptr",
    "ring_ptr",
    "xs_ptr",
    "bs_ptr",
    "y_ptr",
    "gate_ptr",
    "rows_ptr",
    "gate_rows_ptr",
    "next_rows_ptr",
    "h_ptr",
    "words_ptr",
)
TYPES = dict.fromkeys(BF16, "*bf16") | {
    "codes_ptr": "*i64",
    "uniform_ptr": "*fp64",
    "eps": "fp32",
    **dict.fromkeys(("step_ptr", "done_ptr", "offset_ptr", "top_k_ptr", "diverged_ptr", "places_ptr"), "*i32"),
}
AIM_B = {"INNER": 1536, "H": 24, "N": 128}
PROJECT = {**AIM_B, "D": 768, "TAPS": 4, "BLOCK_N": 32, "BLOCK_K": 128, "EARLY": False, "LINE": 64, "CHAINED": True}
LINEAR = {"SPLIT": 4, "BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 128, "EARLY": False, "LINE": 64, "CHAINED": True}
MIX = {**AIM_B, "P": 64, "AHEAD": 0, "AHEAD_B": 0, "VECTORS": False, "LINE": 64, "CHAINED": True}
MIX |= {"FIRST": False, "D": 768, "GATE_ROWS": 3, "NEXT_ROWS": 3}
SIFT = {"GUIDED": True, "CHUNK": 1024, "SLOTS": 128, "CHUNKS": 16, "CHAINED": True}
CHOOSE = {"GUIDED": True, "BLOCK": 16384, "SLOTS": 128, "CHUNKS": 16, "CHAINED": True}
CASES = [
    ("linear_kernel", {**LINEAR, "INNER": 768, "SPLIT": 1, "BLOCK_M": 64, "BLOCK_N": 32}, {}),
    ("linear_kernel", {**LINEAR, "INNER": 1536}, {}),
    ("linear_kernel", {**LINEAR, "INNER": 600}, {}),
    ("linear_kernel", {**LINEAR, "INNER": 1536, "BLOCK_N": 32, "EARLY": True, "LINE": 8}, {}),
    (
        "linear_kernel",
        {**LINEAR, "INNER": 2048, "BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 512, "EARLY": True},
        {"num_warps": 8},
    ),
    ("in_proj_kernel", {**PROJECT, "BLOCK_M": 16}, {}),
    ("in_proj_kernel", {**PROJECT, "BLOCK_M": 64}, {"num_warps": 8}),
    ("in_proj_kernel", {**PROJECT, "BLOCK_M": 16, "BLOCK_K": 256, "EARLY": True}, {}),
    ("activate_kernel", {**AIM_B, "TAPS": 4, "BLOCK_N": 512}, {}),
    ("mixer_kernel", {**MIX, "HEADS": 1, "STEPS": 128, "PRODUCTS": False}, {"num_warps": 8}),
    (
        "mixer_kernel",
        {**MIX, "HEADS": 4, "STEPS": 8, "PRODUCTS": False, "AHEAD": 64, "AHEAD_B": 64, "VECTORS": True},
        {"num_warps": 2},
    ),
    ("mixer_kernel", {**MIX, "HEADS": 8, "STEPS": 16, "PRODUCTS": True, "AHEAD": 128}, {"num_warps": 8}),
    ("top_candidates_kernel", SIFT, {"num_warps": 8}),
    ("top_candidates_kernel", SIFT, {"num_warps": 2}),
    ("mixer_kernel", {**MIX, "HEADS": 6, "STEPS": 32, "PRODUCTS": True, "FIRST": True, "AHEAD": 32}, {"num_warps": 8}),
    ("sample_token_kernel", CHOOSE, {"num_warps": 8}),
    ("sample_token_kernel", CHOOSE, {"num_warps": 16}),
    ("enter_kernel", {"ROWS": 3, "MODULATED": True, "POSITIONS": True, "BLOCK": 1024, "CHAINED": True}, {}),
    (
        "advance_kernel",
        {"GATE_ROWS": 3, "ROWS": 2, "MODULATED": True, "FINAL": True, "PARTS": 24, "PARTS_BLOCK": 32, "SPLIT": 4}
        | {"BLOCK": 1024, "CHAINED": True},
        {},
    ),
]


@pytest.mark.parametrize(("name", "constants", "options"), CASES)
def test_it_compiles_for_sm_90(name, constants, options):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aim_lightning.sampling.fast import kernels

    kernel = getattr(kernels, name)
    kinds = {arg: TYPES.get(arg, "*fp32" if arg.endswith("_ptr") else "i32") for arg in kernel.arg_names}
    places = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg.endswith("_ptr")}
    source = ASTSource(kernel, kinds | dict.fromkeys(constants, "constexpr"), places, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, **options})
    assert made.asm["cubin"]
    assert made.metadata.shared <= 227 * 1024  # bytes that a program may have there
