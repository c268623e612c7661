"""The fast decoder's kernels compile for an H100 without a GPU: Triton contains the complete compiler."""

from collections.abc import Iterator

import pytest

from aim_lightning.sampling.fast.kernel_configs import MatmulConfig, table

triton = pytest.importorskip("triton", reason="Triton exists for Linux alone")
BF16 = "x weight zxbcdt ring mixer_x b c y gate rows h words positions start state"
INT32 = "step sampled done offset top_k diverged indices"
TYPES = {f"{name}_ptr": "*bf16" for name in BF16.split()} | {f"{name}_ptr": "*i32" for name in INT32.split()}
TYPES |= {"xs_ptr": "*i16", "bs_ptr": "*i16", "codes_ptr": "*i64", "uniform_ptr": "*fp64", "eps": "fp32"}
AIM_B = {"INNER": 1536, "H": 24, "N": 128}
BLOCKS = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 128, "EARLY": 0, "LINE": 64, "CHAINED": True}
PROJECT = {**AIM_B, **BLOCKS, "D": 768, "TAPS": 4, "BLOCK_N": 32}
LINEAR = {**BLOCKS, "INNER": 1536, "SPLIT": 1}
MIX = {**AIM_B, "P": 64, "CHUNK": 0, "AHEAD": 0, "AHEAD_B": 0, "LINE": 64, "CHAINED": True}
AHEAD = {"AHEAD": 64, "AHEAD_B": 64}
CANDIDATES = {"GUIDED": True, "CHUNK": 1024, "SLOTS": 128, "CHUNKS": 16, "CHAINED": True}
SAMPLE = {"GUIDED": True, "BLOCK": 16384, "SLOTS": 128, "CHUNKS": 16, "CHAINED": True}
SAMPLE |= {"ROWS": 3, "MODULATED": True, "POSITIONS": True, "BLOCK_D": 1024}
ADVANCE = {**AIM_B, "P": 64, "GATE_ROWS": 3, "ROWS": 2, "MODULATED": True, "FINAL": True, "CHAINED": True}
ADVANCE |= {"PARTS": 24, "PARTS_BLOCK": 32, "SPLIT": 4, "BLOCK": 1024, "CHUNK": 0}
ENTER = {"ROWS": 3, "MODULATED": True, "BLOCK_D": 1024}
WARPS = "num_warps"  # 4 by default
CASES = [
    ("linear_kernel", {**LINEAR, "INNER": 768, "BLOCK_M": 64, "BLOCK_N": 32}),
    ("linear_kernel", LINEAR),
    ("linear_kernel", {**LINEAR, "INNER": 600, "SPLIT": 2}),
    ("linear_kernel", {**LINEAR, "BLOCK_M": 8, "BLOCK_N": 64, "SPLIT": 4, "EARLY": 4}),
    ("linear_kernel", {**LINEAR, "INNER": 1024, "BLOCK_M": 32, "BLOCK_N": 32, "EARLY": 8, WARPS: 8}),
    ("in_proj_kernel", PROJECT),
    ("in_proj_kernel", {**PROJECT, "BLOCK_M": 64, WARPS: 8}),
    ("in_proj_kernel", {**PROJECT, "BLOCK_M": 8, "BLOCK_N": 16, "EARLY": 4}),
    ("state_kernel", {**AIM_B, "P": 64, "COLUMNS": 32, "CHAINED": True}),
    ("state_kernel", {**AIM_B, "P": 64, "COLUMNS": 64, "CHAINED": True, WARPS: 8}),
    ("activate_kernel", {**AIM_B, "TAPS": 4, "BLOCK_N": 512}),
    ("mixer_kernel", {**MIX, "HEADS": 1, "STEPS": 128, WARPS: 8}),
    ("mixer_kernel", {**MIX, **AHEAD, "HEADS": 4, "STEPS": 64, WARPS: 2}),
    ("mixer_kernel", {**MIX, "HEADS": 8, "STEPS": 32, "AHEAD": 128, WARPS: 8}),
    ("top_candidates_kernel", {**CANDIDATES, WARPS: 8}),
    ("top_candidates_kernel", {**CANDIDATES, WARPS: 2}),
    ("mixer_kernel", {**MIX, "HEADS": 6, "STEPS": 32, "AHEAD": 32, WARPS: 8}),
    ("mixer_kernel", {**MIX, "HEADS": 8, "STEPS": 32, "CHUNK": 64, "AHEAD": 96, WARPS: 8}),
    ("mixer_kernel", {**MIX, "HEADS": 4, "STEPS": 64, "CHUNK": 64}),
    ("fragment_mixer_kernel", {**MIX, "HEADS": 8, "STEPS": 256, "AHEAD": 96, "MORE": False, WARPS: 8}),
    ("fragment_mixer_kernel", {**MIX, "HEADS": 8, "STEPS": 64, "CHUNK": 64, "AHEAD": 96, "MORE": False, WARPS: 8}),
    ("fragment_mixer_kernel", {**MIX, "HEADS": 6, "STEPS": 128, "AHEAD": 64, "AHEAD_B": 64, "MORE": True}),
    ("chunk_kernel", {**AIM_B, "P": 64, "CHUNK": 64, WARPS: 8}),
    ("chunk_kernel", {"INNER": 512, "H": 4, "N": 128, "P": 128, "CHUNK": 64, WARPS: 16}),
    ("sample_token_kernel", {**SAMPLE, WARPS: 8}),
    ("sample_token_kernel", {**SAMPLE, WARPS: 16}),
    ("enter_kernel", ENTER),
    ("advance_kernel", {**ADVANCE, "HEADS": 8, WARPS: 8}),
    ("advance_kernel", {**ADVANCE, "HEADS": 0, WARPS: 16}),
    ("advance_kernel", {**ADVANCE, "HEADS": 6, "CHUNK": 64}),
]


def streamed(matmul: MatmulConfig) -> dict:
    """Return the constants of a streamed product."""
    blocks = {"BLOCK_M": matmul.block_m, "BLOCK_N": matmul.block_n, "BLOCK_K": matmul.block_k, "WARPS": matmul.warps}
    return {**blocks, "STAGES": matmul.stages, "EARLY": matmul.streamed, "CHAINED": True, WARPS: matmul.warps}


def streamed_cases() -> Iterator[tuple[str, dict]]:
    """Return the layers' streamed products of the table, and one of few rows with a single buffer."""
    for (width, _), configs in table().items():
        if configs.out.streamed:
            sizes = {"D": width, "TAPS": 4, "INNER": 2 * width, "H": width // 32, "N": 128}
            yield "in_proj_streamed_kernel", streamed(configs.project) | sizes
            yield "linear_streamed_kernel", streamed(configs.out) | {"INNER": 2 * width, "SPLIT": configs.split}
    single = MatmulConfig(16, 32, 64, 1, 4, streamed=1)
    yield "linear_streamed_kernel", streamed(single) | {"INNER": 384, "SPLIT": 3, "CHAINED": False}


@pytest.mark.parametrize(("name", "options"), [*CASES, *streamed_cases()])
def test_it_compiles_for_sm_90(name, options):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aim_lightning.sampling.fast import kernels

    kernel, constants = getattr(kernels, name), options.copy()
    if kernel is None:
        pytest.skip("Triton 3.5 lacks a part of Gluon")
    num_warps = constants.pop(WARPS, 4)
    types = {arg: TYPES.get(arg, "*fp32" if arg.endswith("_ptr") else "i32") for arg in kernel.arg_names}
    positions = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg.endswith("_ptr")}
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), positions, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024  # bytes per program
