"""The fast decoder: the plain decoder's codes in float32, fresh weights at every call, clear refusals."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY, assert_user_error, script_output, skip_without
from sampling.kernels_on_cpu import OPTIONS, network

from aim_lightning.sampling import generate, release_decoders
from aim_lightning.sampling.fast import FastDecoder, cache, decoder, decoder_for, kept_bytes
from aim_lightning.sampling.fast.buffers import exponent_type
from aim_lightning.sampling.fast.cache import fitting_batch
from aim_lightning.sampling.fast.torch_step import TorchStep
from aim_lightning.utils.errors import UserError

LABELS = torch.tensor([0, 2, 3])


def both(model, labels=LABELS, **options):
    """Return the codes of the plain and of the fast decoder."""
    return [generate(model, labels, seed=5, decoder=decoder, **options) for decoder in ("plain", "fast")]


@pytest.mark.parametrize("adaln", ["none", "layer", "group"])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
@pytest.mark.parametrize("options", OPTIONS)
def test_codes_equal_the_plain_decoder(adaln, cfg_scale, options):
    plain, fast = both(network(adaln), cfg_scale=cfg_scale, **options)
    assert torch.equal(plain, fast)
    assert len(plain.unique()) > 3


def test_schedules_positions_and_other_taps():
    model = network("group", position_embedding=False, d_conv=3)
    for schedule in ("linear", "interval"):
        assert torch.equal(*both(model, cfg_scale=3.0, cfg_schedule=schedule, cfg_interval=(0.3, 0.8)))
    assert torch.equal(*both(network("layer"), cfg_scale=2.0, position_offset=1))


def test_no_state_of_a_call_reaches_the_next():
    """Every call equals the plain decoder's, with shapes, models, options and weights that alternate."""
    first, second = network("group"), network("layer", seed=1)
    for _ in range(2):
        for model in (first, second):
            for labels in (LABELS, LABELS[:1], LABELS[:2]):
                assert torch.equal(*both(model, labels, cfg_scale=2.0))
                assert torch.equal(*both(model, labels, top_k=3))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)


def test_averaged_weights_swapped_in_and_out():
    """Training swaps the tensors of the parameters."""
    model, average = network("group"), network("group", seed=1)
    trained = [parameter.data for parameter in model.parameters()]
    first, averaged = both(model)[1], both(average)[1]
    assert not torch.equal(first, averaged)
    for values, expected in ((average.parameters(), averaged), (trained, first)):
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.data = value.data
        assert torch.equal(both(model)[1], expected)


def test_captured_work_before_the_first_step_follows_the_weights(monkeypatch):
    """A stand-in for a graph reads the tensors that were the parameters' when it was captured."""
    model, average, captured = network("group"), network("group", seed=1), []
    trained, parameters = [parameter.data for parameter in model.parameters()], list(model.parameters())

    def assign(values):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value.data

    def graph(work):
        captured.append(read := [parameter.data for parameter in parameters])

        def replay():
            now = [parameter.data for parameter in parameters]
            assign(read)
            work()
            assign(now)

        return replay

    monkeypatch.setattr(decoder, "_captured", graph)
    monkeypatch.setattr(FastDecoder, "_capture", lambda self, work: work)
    decoder_for(model, 3, False, torch.float32)._capturing = True
    for values in (trained, average.parameters(), trained):
        assign(values)
        for labels in (LABELS, LABELS, LABELS.flip(0)):
            assert torch.equal(*both(model, labels, top_k=20))
        torch._foreach_mul_(trained, 1.1)  # in place: the addresses stay
        assert torch.equal(*both(model))
    assert len(captured) == 3
    torch.set_float32_matmul_precision("high")  # it would be part of the graph too
    try:
        assert torch.equal(*both(model)) and len(captured) == 3
    finally:
        torch.set_float32_matmul_precision("highest")


def test_one_decoder_per_shape_and_few_are_kept():
    model = network("group")
    decoders = [decoder_for(model, images, True, torch.float32) for images in (1, 2, 1, 3, 2)]
    assert decoders[0] is decoders[2]
    assert decoders[1] is not decoders[4]  # the least recently used one was released
    assert len(cache._decoders[model]) == cache.KEPT
    release_decoders(model)
    assert model not in cache._decoders


def test_previews_and_refusals():
    seen, kept = [], []
    model = network("none")

    def on_step(step, codes):
        seen.append((step, codes.clone()))
        kept.append(codes)

    codes = generate(model, LABELS, decoder="fast", on_step=on_step)
    assert [t for t, _ in seen] == list(range(model.config.num_tokens))
    assert all(torch.equal(sofar, codes[:, : t + 1]) for t, sofar in seen)
    generate(model, LABELS, decoder="fast", seed=1)
    assert torch.equal(kept[-1], codes)  # the next call does not write to tensors of the caller
    with pytest.raises(UserError, match="the fast decoder cannot be used: it has no MLP"):
        generate(network("none", d_intermediate=8), LABELS, decoder="fast")
    assert_user_error("decoder is 'slow'; it must be auto, plain or fast", generate, model, LABELS, decoder="slow")


def test_kept_decoders_are_released_for_a_new_one(monkeypatch):
    """Kept decoders are released only where a new one would not fit next to them."""
    model, dtype = network("group"), torch.float32
    each, weights = cache.bytes_needed(model.config, 1, True, dtype), 4 * sum(p.numel() for p in model.parameters())
    total = 2 * weights + 30 * each
    monkeypatch.setattr(cache, "free_bytes", lambda device: total - kept_bytes(model))
    decoder_for(model, 10, True, dtype)
    decoder_for(model, 11, True, dtype)
    assert len(cache._decoders[model]) == 2
    decoder_for(model, 25, True, dtype)
    assert len(cache._decoders[model]) == 1
    assert_user_error(r"a batch of \d\d would fit", decoder_for, model, 100, True, dtype)


def test_float32_uses_no_tf32_under_any_setting_of_the_process(monkeypatch):
    """A captured graph would keep the setting."""
    model, seen, compute = network("none"), [], TorchStep.__call__
    seeing = lambda self: (seen.append(torch.get_float32_matmul_precision()), compute(self))  # noqa: E731
    monkeypatch.setattr(TorchStep, "__call__", seeing)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        for dtype in (torch.float32, torch.bfloat16):
            generate(model, LABELS, decoder="fast", precision=str(dtype).removeprefix("torch."))
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"] * 9 + ["high"] * 9


@pytest.mark.parametrize("tokens", [256, 1024])
def test_weights_of_the_past_do_not_drift(tokens):
    """exp(L_t - L_s) by a running sum in the buffers' type, for a head that forgets until the last quarter."""
    late, generator = tokens * 3 // 4, torch.Generator().manual_seed(0)
    dt = torch.where(torch.arange(tokens) < late, 1.0, 1e-3) * (0.8 + 0.4 * torch.rand(tokens, generator=generator))
    rate = dt * 16
    sums = torch.zeros(tokens, dtype=exponent_type(tokens, torch.bfloat16))
    for t in range(1, tokens):
        sums[t] = sums[t - 1] - rate[t].to(sums.dtype)
    weights = (sums[-1] - sums[late:]).float().exp()
    exact = torch.stack([-rate[s + 1 :].double().sum() for s in range(late, tokens)]).exp()
    assert (weights / exact - 1).abs().max() < 2e-3


def test_memory_is_estimated():
    model = network("group")
    buffers = decoder_for(model, 3, True, torch.bfloat16).buffers
    held = [value for value in vars(buffers).values() if isinstance(value, torch.Tensor)]
    held += [value for layer in buffers.layers for value in vars(layer).values() if value is not None]
    counted = cache.bytes_needed(model.config, 3, True, torch.bfloat16)
    assert counted <= sum(value.numel() * value.element_size() for value in held) <= 2 * counted
    big = replace(TINY, num_tokens=256, d_model=768, n_layer=24)
    assert fitting_batch(10 * 2**30, cache.bytes_needed(big, 1, True, torch.bfloat16)) in range(100, 400)


@pytest.fixture(scope="module")
def interpreted() -> dict:
    """Return the results of the Triton kernels on a CPU."""
    skip_without("g++")  # for torch.compile
    return script_output("sampling/kernels_on_cpu.py")


def test_kernels_give_the_codes_of_plain_pytorch(interpreted):
    assert interpreted["codes"] == [True, True, True]
    assert interpreted["chunks"] == [True, True]


def test_products_of_any_width(interpreted):
    """Cover parts of the sum, odd widths and several row tiles, in bfloat16 with sums in float32."""
    assert len(interpreted["products"]) == 6
    assert max(interpreted["products"].values()) < 1e-6


def test_a_step_in_bf16_with_any_number_of_heads_per_program(interpreted):
    assert max(interpreted["bf16"]) < 3e-2


def test_a_step_in_bf16_with_past_codes_in_registers(interpreted):
    """Cover one span of codes and several, padded heads, exponents in float64, and states at the ends of chunks."""
    assert len(interpreted["fragments"]) == 5
    assert max(interpreted["fragments"]) < 3e-2


def test_past_codes_are_prefetched_from_their_addresses(interpreted):
    """Two codes are a pair: x of the last 10 pairs of 40 codes, B of the last 15; all of 10 codes."""
    many, few = interpreted["fetched"]
    assert many == [list(range(10, 20)), list(range(5, 20))]
    assert few == [list(range(5)), list(range(5))]


def test_rows_past_two_to_the_31st_value(interpreted):
    assert interpreted["far_row"]


def test_logits_that_are_not_finite_end_in_one_line():
    model = network("group")
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = torch.nan
    for name in ("plain", "fast"):
        for options in ({}, {"top_k": 1}, {"top_k": 5, "top_p": 0.9, "cfg_scale": 2.0}):
            with pytest.raises(UserError, match="logits are not finite: the network's weights have diverged"):
                generate(model, LABELS, decoder=name, **options)
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = 1
    assert torch.equal(*both(model))  # the flag is reset


def test_a_decoder_built_in_inference_mode_works_outside_it():
    model = network("group")
    with torch.inference_mode():
        plain, fast = both(model, cfg_scale=2.0)
        assert torch.equal(plain, fast)
    assert torch.equal(generate(model, LABELS, seed=5, decoder="fast", cfg_scale=2.0), plain)


def test_guidance_uses_logits_in_float32():
    assert decoder_for(network("none"), 2, True, torch.bfloat16).buffers.logits_MV.dtype == torch.float32


def test_steps_are_captured_in_graphs_of_eight_and_of_one(monkeypatch):
    """Without a GPU the graphs are plain calls. Every shape is captured once; previews use single steps.

    The work before the first step is captured when it is the same for the second time.
    """
    captured, model = [], network("group", num_tokens=19)
    monkeypatch.setattr(FastDecoder, "_capture", lambda self, work: (captured.append("steps"), work)[1])
    monkeypatch.setattr(decoder, "_captured", lambda work: (captured.append("start"), work)[1])
    built = decoder_for(model, 3, False, torch.float32)
    built._capturing = True
    for _ in range(2):
        assert torch.equal(*both(model))
    assert captured == ["steps", "steps", "start"] and list(built._replays) == [8, 1]
    seen = []
    fast = generate(model, LABELS, seed=5, decoder="fast", on_step=lambda t, codes: seen.append(codes.shape[1]))
    assert seen == list(range(1, 20)) and len(captured) == 3
    assert torch.equal(fast, both(model)[0])
