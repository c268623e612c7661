"""The fast decoder's kernels and captured graph on an NVIDIA GPU."""

from dataclasses import replace

import pytest
import torch
from gpu.tolerances import STEP_LOGITS
from helpers import relative

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling import generate, release_decoders
from aim_lightning.sampling.fast import decoder_for, kernel_configs
from aim_lightning.sampling.fast.kernel_configs import kernel_configs_for, table
from aim_lightning.sampling.filters import guide, keep_top_k, keep_top_p
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.random import hash_uniform

pytestmark = pytest.mark.gpu
LABELS = torch.tensor([0, 3, 9, 9, 1])
EDGE = 1e-5  # probability within which rounding may decide a draw in float32
EDGE_BF16 = 3e-2  # and in bfloat16: logits a hundredth apart move the cumulative sum by about as much
OPTIONS = [{"top_k": 1}, {}, {"top_k": 100, "temperature": 1.3}, {"top_k": 600, "top_p": 0.9}]


def network(adaln: str, seed: int = 0, num_tokens: int = 64, **sizes) -> AiM:
    """Return a network with the presets' head and state widths, whose codes vary."""
    torch.manual_seed(seed)
    small = {"d_model": 256, "n_layer": 4, "vocab_size": 2000, "num_classes": 10, "num_groups": 2}
    config = AiMConfig(num_tokens=num_tokens, adaln=adaln, **{**small, **sizes})
    model = AiM(config, backend="torch")
    for name, parameter in model.named_parameters():
        if "adaLN_modulation" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    torch.nn.init.normal_(model.backbone.embeddings.word_embeddings.weight, std=0.03)
    for layer in model.backbone.layers:
        torch.nn.init.normal_(layer.mixer.out_proj.weight, std=0.1)
    return model.cuda().eval()


def assert_same(model: AiM, labels: torch.Tensor = LABELS, **options) -> None:
    """Assert that both decoders give the same float32 codes, unless a random number falls on the edge of two."""
    plain = generate(model, labels, decoder="plain", seed=3, **options)
    fast = generate(model, labels, decoder="fast", precision="float32", seed=3, **options)
    if options.get("top_k") != 1:
        assert len(plain.unique()) > 10
    for image in (plain != fast).any(dim=1).nonzero().flatten().tolist():
        step = int((plain[image] != fast[image]).nonzero()[0])
        margin = draw_margin(model, labels[image], plain[image, :step], image, step, fast[image, step], **options)
        print(f"image {image} differs from step {step} on, margin {margin:.1e}, {options}")
        assert margin <= EDGE


def draw_margin(
    model, label, codes_L, image, step, other, cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0, seed=3, **_
):
    """Return the distance of the step's random number from the interval of the other code, in probability.

    Rounding may also exchange the last code that the filters keep and the next one, if their logits are equal up to it.
    """
    null = torch.full_like(label, model.null_class)
    with torch.no_grad():
        logits = model(codes_L.expand(2, -1), torch.stack((label, null)).cuda())[:, -1].float()
    row = guide(logits[:1], logits[1:], cfg_scale) / temperature
    if top_k == 1:
        return float((row.max() - row[0, other]) / row.abs().max())
    kept, order = keep_top_p(keep_top_k(row, top_k), top_p), row[0].argsort(descending=True)
    uniform = float(hash_uniform("sample", seed, torch.tensor(image), step))
    margin, last = interval_distance(kept, other, uniform), int(kept.isfinite().sum())
    if last < len(order) and row[0, order[last - 1]] - row[0, order[last]] <= EDGE:
        kept[0, order[last - 1]], kept[0, order[last]] = float("-inf"), row[0, order[last]]
        margin = min(margin, interval_distance(kept, other, uniform))
    return margin


def interval_distance(logits_1V: torch.Tensor, code: int, uniform: float) -> float:
    """Return the distance of a random number from the interval of a code in the cumulative probability."""
    cumulative = logits_1V.double().softmax(-1).cumsum(-1)[0]
    below = float(cumulative[code - 1]) if code else 0.0
    return max(below - uniform, uniform - float(cumulative[code]), 0.0)


@pytest.mark.parametrize("adaln", ["none", "layer", "group"])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_float32_codes_equal_the_plain_decoder(adaln, cfg_scale):
    model = network(adaln)
    for options in OPTIONS:
        assert_same(model, cfg_scale=cfg_scale, **options)


@pytest.mark.parametrize(("tokens", "images"), [(576, 5), (1024, 5), (1024, 1)])
def test_larger_grids(tokens, images):
    model = network("group", num_tokens=tokens)
    assert_same(model, LABELS[:images], cfg_scale=2.0)
    # One image takes the recurrence.
    assert decoder_for(model, images, True, torch.float32).buffers.stored == (64 if images > 1 else 0)


def test_a_captured_graph_serves_no_stale_state():
    """Alternate between batch sizes, models, options and weights."""
    first, second = network("group"), network("layer", seed=1)
    for turn in range(2):
        for model in (first, second):
            for labels in (LABELS, LABELS[:2]):
                assert_same(model, labels, cfg_scale=1.5 + turn, top_p=0.95)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.02)


def bf16_distance(model: AiM, labels: torch.Tensor, cfg_scale: float) -> float:
    """Return the largest relative difference at any step of bf16 logits from float32 teacher forcing of the codes."""
    seen, guided = [], cfg_scale != 1
    buffers = decoder_for(model, len(labels), guided, torch.bfloat16).buffers
    keep = lambda *_: seen.append(buffers.logits_MV.clone())  # noqa: E731
    codes = generate(model, labels, decoder="fast", seed=1, cfg_scale=cfg_scale, top_k=600, on_step=keep)
    rows = torch.cat((labels, torch.full_like(labels, model.null_class))) if guided else labels
    with torch.no_grad():
        exact = model(codes.repeat(2 if guided else 1, 1)[:, :-1], rows.cuda())
    worst = max(relative(logits, exact[:, t]) for t, logits in enumerate(seen))
    print(f"largest relative difference of bf16 logits at any step {worst:.2e}, guidance {cfg_scale}")
    return worst


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_bf16_logits_stay_near_a_float32_state_at_every_step(cfg_scale):
    assert bf16_distance(network("group", num_tokens=256), LABELS, cfg_scale) <= STEP_LOGITS[4]


@pytest.mark.parametrize(("d_model", "rows"), list(table()))
def test_bf16_in_all_shapes_of_the_table(d_model, rows):
    """Run the kernels of the presets: several blocks of the past, tiles of rows, 16384 codes."""
    model = network("layer", num_tokens=80, d_model=d_model, n_layer=2, vocab_size=16384)
    assert kernel_configs_for(model.config, rows, torch.bfloat16) == table()[d_model, rows]
    assert bf16_distance(model, torch.arange(rows // 2) % 10, 2.0) <= STEP_LOGITS[4]


@pytest.mark.parametrize("columns", [8, 64])
def test_the_recurrence(columns, monkeypatch):
    state = kernel_configs.StateKernelConfig(columns, 4)
    measured = replace(table()[768, 32], state=state, dual=0)
    monkeypatch.setattr(kernel_configs, "table", lambda: {(768, 32): measured})
    model = network("group", num_tokens=256, d_model=768, vocab_size=16384, n_layer=2, num_groups=1)
    labels = torch.arange(16) % 10
    assert bf16_distance(model, labels, 2.0) <= STEP_LOGITS[4]
    assert decoder_for(model, 16, True, torch.bfloat16).buffers.stored == 0
    assert_patient_kernels_draw_the_same(model, 16, monkeypatch)
    assert_same(model, labels, cfg_scale=2.0, top_k=600, top_p=0.98)


def test_float32_codes_at_the_widths_of_aim_b_and_batch_64():
    model = network("layer", num_tokens=40, d_model=768, n_layer=3, vocab_size=16384)
    assert_same(model, torch.arange(64) % 10, cfg_scale=2.0, top_k=600, top_p=0.98)


def test_bf16_with_24_layers():
    model = network("layer", d_model=768, n_layer=24, vocab_size=16384)
    assert bf16_distance(model, LABELS, 2.0) <= STEP_LOGITS[24]


@pytest.mark.parametrize("tokens", [576, 1024])
def test_bf16_with_states_at_the_ends_of_chunks(tokens):
    model = network("group", num_tokens=tokens, n_layer=2)
    assert bf16_distance(model, torch.arange(8), 2.0) <= STEP_LOGITS[4]
    assert decoder_for(model, 8, True, torch.bfloat16).buffers.stored == 64


@pytest.mark.parametrize(("d_model", "rows"), [key for key, configs in table().items() if configs.dual])
def test_chunks_in_all_shapes_of_the_table(d_model, rows, monkeypatch):
    measured = replace(table()[d_model, rows], dual=1)
    monkeypatch.setattr(kernel_configs, "table", lambda: {(d_model, rows): measured})
    model = network("layer", num_tokens=150, d_model=d_model, n_layer=2, vocab_size=16384)
    assert bf16_distance(model, torch.arange(rows // 2) % 10, 2.0) <= STEP_LOGITS[4]
    assert decoder_for(model, rows // 2, True, torch.bfloat16).buffers.stored == 64
    assert_patient_kernels_draw_the_same(model, rows // 2, monkeypatch)


def test_bf16_with_576_codes_in_the_dual_form(monkeypatch):
    # Exponents are float64 from 257 stored codes on.
    measured = replace(table()[768, 32], dual=576)
    monkeypatch.setattr(kernel_configs, "table", lambda: {(768, 32): measured})
    model = network("group", num_tokens=576, n_layer=2)
    assert bf16_distance(model, torch.arange(8), 2.0) <= STEP_LOGITS[4]
    assert decoder_for(model, 8, True, torch.bfloat16).buffers.stored == 576


@pytest.mark.parametrize("d_model", [96, 64, 352])
def test_bf16_at_widths_off_the_kernels_blocks(d_model):
    assert bf16_distance(network("group", d_model=d_model), LABELS, 2.0) <= STEP_LOGITS[4]


def test_bf16_codes_do_not_depend_on_the_block_size_but_where_rounding_decides():
    """Allow another code first where the random number is near an edge: other block sizes take other kernels."""
    model, labels = network("layer", d_model=768, n_layer=2, vocab_size=16384), torch.arange(64) % 10
    options = {"cfg_scale": 2.0, "top_k": 600, "top_p": 0.98, "seed": 7}
    draw = lambda size: [  # noqa: E731
        generate(model, labels[part], indices_B=part, decoder="fast", **options)
        for part in torch.arange(len(labels)).split(size)
    ]
    complete, parts = torch.cat(draw(64)), torch.cat(draw(16))
    assert (complete == parts)[:, 0].float().mean() > 0.9
    for image in (complete != parts).any(dim=1).nonzero().flatten().tolist():
        step = int((complete[image] != parts[image]).nonzero()[0])
        other = parts[image, step]
        margin = draw_margin(model, labels[image], complete[image, :step], image, step, other, **options)
        print(f"image {image} differs from step {step} on, margin {margin:.1e}")
        assert margin <= EDGE_BF16


def test_averaged_weights_swapped_in_and_out():
    """Replace the tensors of the parameters, as training does."""
    model, average = network("group"), network("group", seed=1)
    options = {"cfg_scale": 2.0, "seed": 7, "decoder": "fast"}
    own = [parameter.data for parameter in model.parameters()]
    first, expected = generate(model, LABELS, **options), generate(average, LABELS, **options)
    for parameter, other in zip(model.parameters(), average.parameters(), strict=True):
        parameter.data = other.data
    for _ in range(3):  # the work before the first step: by itself, captured, replayed
        assert torch.equal(generate(model, LABELS, **options), expected)
    for parameter, before in zip(model.parameters(), own, strict=True):
        parameter.data = before
    for _ in range(3):
        assert torch.equal(generate(model, LABELS, **options), first)
    for parameter, other in zip(model.parameters(), average.parameters(), strict=True):
        parameter.data.copy_(other.data)  # in place: no address changes
    assert torch.equal(generate(model, LABELS, **options), expected)
    assert_same(model, cfg_scale=2.0)
    assert_same(model, LABELS.flip(0), cfg_scale=1.5, top_k=50)


@pytest.mark.parametrize("tokens", [1, 8, 19])
def test_sequences_that_are_no_multiple_of_a_graph(tokens):
    assert_same(network("layer", num_tokens=tokens), torch.arange(40) % 10, cfg_scale=2.0)


def test_logits_that_are_not_finite_end_the_call():
    # The search of the filters would never end.
    model = network("none")
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = torch.nan
    for options in OPTIONS:
        for decoder in ("plain", "fast"):
            with pytest.raises(UserError, match="logits are not finite"):
                generate(model, LABELS, decoder=decoder, cfg_scale=2.0, **options)


def test_a_decoder_made_in_inference_mode_serves_outside_it():
    model, options = network("layer"), {"cfg_scale": 2.0, "decoder": "fast"}
    with torch.inference_mode():
        inside = generate(model, LABELS, **options)
    assert torch.equal(generate(model, LABELS, **options), inside)


def test_more_images_than_fit_are_one_line():
    model = network("group", num_tokens=1024)
    with pytest.raises(UserError, match=r"needs .* GiB are free; a batch of \d+ would fit"):
        generate(model, torch.zeros(400_000, dtype=torch.int64), decoder="fast")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_network_on_another_than_the_current_device():
    assert_same(network("group").to("cuda:1"), cfg_scale=2.0)


def test_a_call_is_repeatable():
    model = network("layer")
    calls = [generate(model, LABELS, cfg_scale=2.0, top_k=100, seed=7, decoder="fast") for _ in range(2)]
    assert torch.equal(*calls)


EARLY = [(width, rows // 2, 2, 256) for width, rows in table()]
EARLY += [(768, 2, 1, 1), (768, 2, 1, 9), (768, 16, 1, 9), (768, 16, 1, 40)]


@pytest.mark.parametrize(("d_model", "images", "layers", "tokens"), EARLY)
def test_kernels_that_start_early_read_nothing_too_soon(d_model, images, layers, tokens, monkeypatch):
    # The sizes of the test of all shapes, whose compiled kernels are used again.
    model = network("layer", num_tokens=tokens, d_model=d_model, vocab_size=16384, n_layer=layers)
    assert_patient_kernels_draw_the_same(model, images, monkeypatch)


MIXES = {
    "two_heads": kernel_configs.MixerKernelConfig(2, 64, 3, 4),
    "two_warps": kernel_configs.MixerKernelConfig(4, 32, 3, 2),
    "two_ahead": kernel_configs.MixerKernelConfig(4, 32, 4, 4),
    "six_heads": kernel_configs.MixerKernelConfig(6, 32, 3, 8),
    "all_ahead": kernel_configs.MixerKernelConfig(1, 64, 6, 4),
    "fragments": kernel_configs.MixerKernelConfig(6, 128, 3, 8, fragments=True),
}


PRODUCTS = {
    "early": kernel_configs.MatmulConfig(16, 32, 128, 3, 4, early=True),
    "streamed": kernel_configs.MatmulConfig(16, 128, 64, 9, 8, streamed=2),
}


@pytest.mark.parametrize(("mix", "product"), [(mix, "early") for mix in MIXES] + [("fragments", "streamed")])
def test_other_launch_options(mix, product, monkeypatch):
    """Read weights early and fetch B: the codes are right, also where the table does not use it."""
    mix, product = MIXES[mix], PRODUCTS[product]
    expected = replace(table()[768, 32], project=product, out=product, split=2, mix=mix, sample_warps=16)
    expected = replace(expected, ahead=64, ahead_b=64, line=16)
    monkeypatch.setattr(kernel_configs, "table", lambda: {(768, 32): expected})
    model = network("group", num_tokens=256, d_model=768, vocab_size=16384, n_layer=2, num_groups=1)
    assert kernel_configs_for(model.config, 32, torch.bfloat16) == expected
    assert bf16_distance(model, torch.arange(16) % 10, 2.0) <= STEP_LOGITS[4]
    assert_patient_kernels_draw_the_same(model, 16, monkeypatch)


@pytest.mark.parametrize(("rows", "inner", "cols", "split"), [(2, 512, 40, 1), (40, 768, 100, 3), (70, 384, 1001, 1)])
@pytest.mark.parametrize("blocks", [(16, 32, 128, 5, 4), (32, 64, 64, 2, 8), (32, 16, 128, 1, 2)], ids=str)
def test_streamed_products(rows, inner, cols, split, blocks):
    """Cover fewer and more stages than blocks, rows and columns beyond the last ones, and parts of the sum."""
    from aim_lightning.sampling.fast import kernels
    from aim_lightning.sampling.fast.launches import launch_options, linear, product_kernel

    if kernels.linear_streamed_kernel is None:
        pytest.skip("Triton 3.5 lacks a part of Gluon")

    torch.manual_seed(0)
    x, weight = (torch.randn(count, inner, device="cuda").bfloat16() for count in (rows, cols))
    launch = launch_options(x.device, x.dtype)
    for streamed in {1, min(blocks[3], inner // split // blocks[2])}:
        out = torch.full((split, rows, cols), torch.nan, device="cuda")
        config = kernel_configs.MatmulConfig(*blocks, streamed=streamed)
        assert product_kernel("linear", x.device, config, launch, 64)[0] is kernels.linear_streamed_kernel
        linear(x, weight, out, config, launch)
        assert relative(out.double().sum(0), x.double() @ weight.double().t()) < 1e-6


def assert_patient_kernels_draw_the_same(model: AiM, images: int, monkeypatch) -> None:
    """Assert that all codes stay the same when every kernel waits for the end of the previous one."""
    from aim_lightning.sampling.fast import triton_step  # imports triton

    labels, tokens = torch.arange(images) % 10, model.config.num_tokens
    options = {"cfg_scale": 2.0, "seed": 7, "top_k": 600, "top_p": 0.98, "decoder": "fast"}
    early = [generate(model, labels, **options) for _ in range(3)]
    release_decoders(model)
    monkeypatch.setattr(triton_step, "launch_options", lambda *_: {"CHAINED": False})
    patient = generate(model, labels, **options)
    assert len(patient.unique()) >= min(100, images * tokens // 8)
    assert all(torch.equal(codes, patient) for codes in early)
