"""Shapes of the fast decoder's kernels: the table is sound, and every network gets something that its sizes allow."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aim_lightning.models import AiMConfig
from aim_lightning.sampling.fast import kernel_configs
from aim_lightning.sampling.fast.buffers import CODES_PER_CHUNK, LEAST_COLUMNS, LONG, PARTS
from aim_lightning.sampling.fast.decoder import STEPS_PER_GRAPH
from aim_lightning.sampling.fast.kernel_configs import (
    LEAST_EARLY_ROWS,
    MatmulConfig,
    early_fits,
    kernel_configs_for,
    mixer_fits,
    stage_bytes,
    stored_codes,
    table,
)

SHARED = 227 * 1024  # bytes that a program may have on an H100
SHARED_SIZES = [91, 155, 200]  # KiB: a consumer's GPU, an A100, an H100, less what is spared


PRESETS = [("AiM-B", 1), ("AiM-B", 16), ("AiM-B", 64), ("AiM-L", 16), ("AiM-L", 64), ("AiM-XL", 16)]


@pytest.mark.parametrize("tokens", [256, 576])
@pytest.mark.parametrize(("preset", "images"), PRESETS)
def test_the_presets_have_rows_of_their_own(preset, images, tokens):
    config = AiMConfig.preset(preset, num_tokens=tokens)
    configs = kernel_configs_for(config, 2 * images, torch.bfloat16)
    assert configs == table()[config.d_model, 2 * images] and config.nheads % configs.mix.heads == 0


@pytest.mark.parametrize("shared", SHARED_SIZES)
@pytest.mark.parametrize("key", table())
def test_products_fit_into_a_gpus_shared_memory(key, shared):
    config = AiMConfig(d_model=key[0], n_layer=2, num_classes=10)
    configs = kernel_configs_for(config, key[1], torch.bfloat16, shared * 1024)
    for matmul in (configs.project, configs.out, configs.head):
        assert matmul.early or shared_memory(matmul) <= shared * 1024
        assert matmul.stages >= 2 and matmul.streamed <= matmul.stages
    assert shared < 200 or configs == table()[key]


def shared_memory(matmul: MatmulConfig) -> int:
    """Return the bytes of a product's buffers: Triton's pipeline has one less than stages."""
    return stage_bytes(matmul) * (matmul.stages if matmul.streamed else matmul.stages - 1)


def test_every_row_of_the_table_can_run():
    for configs in table().values():
        assert configs.state.columns >= LEAST_COLUMNS and configs.split <= PARTS
        for matmul in (configs.project, configs.out, configs.head):
            assert matmul.early or (shared_memory(matmul) <= SHARED and matmul.block_m >= 16)
            assert matmul.block_m >= LEAST_EARLY_ROWS and matmul.block_k >= 16
        assert configs.mix.heads <= 16 and configs.mix.steps >= 32
        assert configs.dual in (0, LONG)  # as `bytes_needed` counts
    assert CODES_PER_CHUNK % STEPS_PER_GRAPH == 0  # chunks end between graphs


@given(
    st.sampled_from([64, 96, 352, 768, 1024, 2048]),
    st.integers(1, 600),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.sampled_from([16, 64, 128]),
    st.sampled_from([256, 576]),
    st.sampled_from(SHARED_SIZES),
)
def test_any_network_gets_what_its_sizes_allow(d_model, rows, dtype, headdim, tokens, shared):
    if 2 * d_model % headdim:
        return
    config = AiMConfig(d_model=d_model, n_layer=2, headdim=headdim, num_classes=10, num_tokens=tokens)
    configs = kernel_configs_for(config, rows, dtype, shared * 1024)
    assert configs == kernel_configs_for(config, rows, dtype, shared * 1024)
    assert config.nheads % configs.mix.heads == 0
    assert configs.project.block_m <= max(16, 2 * rows)
    parts = (
        (configs.project, config.d_model),
        (configs.out, config.d_inner / configs.split),
        (configs.head, config.d_model),
    )
    assert all(matmul.block_m >= 16 or (matmul.early and early_fits(matmul, inner)) for matmul, inner in parts)
    for matmul, inner in parts:
        assert matmul.early or (shared_memory(matmul) <= shared * 1024 and matmul.stages >= 2)
        if matmul.streamed:
            assert not matmul.early and inner % matmul.block_k == 0
            assert matmul.streamed <= min(matmul.stages, inner // matmul.block_k)
    assert config.headdim % configs.state.columns == 0
    assert mixer_fits(configs.mix, config) or configs.mix.heads == 1


def products(d_model: int, shared: int = 200 * 1024) -> list[MatmulConfig]:
    """Return the products of 16 images."""
    config = AiMConfig(d_model=d_model, n_layer=2, num_classes=10)
    configs = kernel_configs_for(config, 32, torch.bfloat16, shared)
    return [configs.project, configs.out, configs.head]


def test_products_of_16_images_are_streamed_where_their_blocks_fit():
    assert all(matmul.streamed for d_model in (256, 768, 1024, 1536, 2048) for matmul in products(d_model))
    assert not any(matmul.streamed for matmul in products(96))  # no block divides the inner dimension
    assert not any(matmul.streamed for matmul in products(1024, shared=24 * 1024))  # one buffer would not overlap
    both = MatmulConfig(8, 16, 128, 3, 4, early=True, streamed=2)
    assert kernel_configs._fitting_matmul(both, 8, 768, 200 * 1024) == replace(both, streamed=0)


@pytest.mark.parametrize(
    ("device", "cuda", "compiled", "expected"),
    [
        ("cuda", "13.0", "streamed", "streamed"),
        ("cuda", "13.0", None, "pipeline"),
        ("cuda", None, "streamed", "pipeline"),  # an AMD GPU
        ("cpu", "13.0", "streamed", "pipeline"),
    ],
)
def test_which_kernel_computes_a_streamed_product(device, cuda, compiled, expected, monkeypatch):
    pytest.importorskip("triton", reason="Triton exists for Linux alone")
    from aim_lightning.sampling.fast import kernels
    from aim_lightning.sampling.fast.launches import product_kernel

    monkeypatch.setattr(kernels, "linear_streamed_kernel", compiled)
    monkeypatch.setattr(kernels, "linear_kernel", "pipeline")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    config = MatmulConfig(32, 64, 128, 6, 8, streamed=3)
    kernel, options = product_kernel("linear", torch.device(device), config, {"CHAINED": True}, 64)
    assert kernel == expected and options["num_warps"] == 8
    assert options["EARLY"] == (3 if expected == "streamed" else 0)
    assert (options["STAGES"] if expected == "streamed" else options["num_stages"]) == 6


def test_one_image_takes_the_recurrence_and_long_sequences_states_at_the_ends_of_chunks():
    def stored(tokens, rows):
        return stored_codes(AiMConfig.preset("AiM-B", num_tokens=tokens), rows, torch.bfloat16)

    assert [stored(256, rows) for rows in (2, 32, 128)] == [0, 256, 256]
    assert [stored(tokens, 32) for tokens in (64, 256, 576, 1024)] == [64, 256, 64, 64]
    assert stored(1024, 2) == 0


def test_fragments_take_as_many_heads_as_registers_hold():
    for preset, sizes, heads in (
        ("AiM-B", {}, 8),
        ("AiM-L", {}, 8),
        ("AiM-B", {"headdim": 128}, 4),
        ("AiM-L", {"d_state": 512}, 4),
    ):
        mixer = kernel_configs_for(AiMConfig.preset(preset, **sizes), 32, torch.bfloat16).mix
        assert mixer.fragments and mixer.heads == heads
    assert not kernel_configs_for(AiMConfig.preset("AiM-B"), 32, torch.float32).mix.fragments


def test_wide_states_take_the_recurrence_where_the_kernel_of_a_chunk_would_not_fit():
    for headdim, d_state, expected in ((128, 128, 64), (128, 256, 0), (256, 256, 0)):
        config = AiMConfig.preset("AiM-B", headdim=headdim, d_state=d_state, num_tokens=576)
        assert stored_codes(config, 32, torch.bfloat16) == expected
