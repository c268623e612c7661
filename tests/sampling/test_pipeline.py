"""Labels to images: blocks of one size, `auto`, memory, labels."""

import logging
import sys
from dataclasses import fields, replace
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli.test_configs import compose_and_check
from conftest import ROOT
from helpers import TINY, TINY_VQ, assert_user_error, random_aim

import aim_lightning
from aim_lightning.models import VQModel
from aim_lightning.pipeline import AiMPipeline, pixel_decoder
from aim_lightning.pipeline import pipeline as pipeline_module
from aim_lightning.pipeline.pixel_decoder import PixelDecoder, largest_output
from aim_lightning.sampling import SamplingOptions, filters, generate, resolve
from aim_lightning.sampling.fast import cache, decoder_for
from aim_lightning.sampling.options import auto_batch
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log_once
from aim_lightning.utils.pixels import to_uint8

LABELS = [0, 1, 2, 0, 1]
GIB = 2**30


@pytest.fixture
def pipeline() -> AiMPipeline:
    torch.manual_seed(2)
    return AiMPipeline(random_aim(), VQModel(replace(TINY_VQ, image_size=4)).requires_grad_(False))


@pytest.fixture
def sampled(monkeypatch) -> list[int]:
    """Record the sizes of the batches that the network samples."""
    sizes = []

    def counted(model, labels_B, **options):
        sizes.append(len(labels_B))
        return generate(model, labels_B, **options)

    monkeypatch.setattr(pipeline_module, "generate", counted)
    return sizes


def test_every_block_has_the_requested_size(pipeline, sampled):
    assert [len(batch) for batch in pipeline.batches(LABELS, batch_size=3)] == [3, 2]
    assert len(pipeline.generate(LABELS, batch_size=8)) == 5
    assert sampled == [3, 3, 8]


@pytest.mark.parametrize("decoder", ["plain", "fast"])
def test_the_same_seed_index_and_block_size_give_the_same_image(pipeline, decoder):
    options = {"seed": 4, "batch_size": 4, "cfg_scale": 2.0, "top_k": 9, "decoder": decoder}
    images = pipeline.generate(LABELS, **options)
    for i, label in enumerate(LABELS):
        assert torch.equal(pipeline.generate([label], indices=[i], **options)[0], images[i])


@pytest.mark.parametrize("decoder", ["plain", "fast"])
def test_codes_do_not_depend_on_the_block_size_in_float32(pipeline, decoder):
    codes_by_size = {}
    for size in (1, 2, 5, 7):
        parts = []
        on_step = lambda step, codes, parts=parts: parts.append(codes.clone()) if step == 3 else None  # noqa: E731
        list(pipeline.batches(LABELS, batch_size=size, seed=1, cfg_scale=1.5, decoder=decoder, on_step=on_step))
        codes_by_size[size] = torch.cat(parts)  # without those that fill a block up
    assert all(torch.equal(codes, codes_by_size[1]) for codes in codes_by_size.values())


def test_auto_on_a_cpu(pipeline, sampled):
    """The size is fixed, and at most the number of labels; a record contains it."""
    assert pipeline.resolve(SamplingOptions(batch_size="auto")).batch_size == 64
    pipeline.generate(LABELS)
    pipeline.generate([0] * 65, batch_size="auto")
    assert sampled == [5, 64, 64]


def test_auto_on_a_gpu_is_a_power_of_two_that_fits():
    assert [auto_batch(free * GIB, GIB) for free in (2, 3, 71, 72, 999)] == [1, 2, 32, 64, 256]
    with pytest.raises(UserError, match=r"needs 1.0 GiB of GPU memory, 0.5 GiB are free; not even one image would fit"):
        auto_batch(GIB // 2, GIB)


ON_GPU = SimpleNamespace(is_cuda=True, device=torch.device("cuda"), dtype=torch.float32)
ON_GPU = SimpleNamespace(weight=ON_GPU)
ON_GPU = SimpleNamespace(lm_head=ON_GPU, config=TINY, parameters=list, modules=list)
OPTIONS_MODULE = sys.modules[resolve.__module__]


def test_auto_does_not_depend_on_kept_decoders(monkeypatch):
    """Kept decoders release their memory when a new one needs it."""
    monkeypatch.setattr(OPTIONS_MODULE, "obstacle", lambda config, device: None)
    each, result = cache.bytes_needed(TINY, 1, False, torch.bfloat16), []
    for kept in (0, 60 * each):
        monkeypatch.setattr(OPTIONS_MODULE, "kept_bytes", lambda model, kept=kept: kept)
        monkeypatch.setattr(OPTIONS_MODULE, "free_bytes", lambda device, kept=kept: 75 * each - kept)
        result.append(resolve(SamplingOptions(decoder="fast", batch_size="auto"), ON_GPU).batch_size)
    assert result == [64, 64]


def test_precision_is_resolved_for_the_record(monkeypatch):
    options, plain = SamplingOptions(decoder="fast"), SamplingOptions(decoder="plain")
    message = "the fast decoder cannot be used: its kernels need d_state"
    assert_user_error(message, resolve, options, ON_GPU)  # before anything is sampled
    monkeypatch.setattr(OPTIONS_MODULE, "obstacle", lambda config, device: None)
    assert resolve(options, random_aim()).precision == "float32"
    assert resolve(options, ON_GPU).precision == "bfloat16"
    assert resolve(replace(options, precision="float32"), ON_GPU).precision == "float32"
    assert resolve(plain, random_aim()).precision == "float32"
    assert resolve(plain, random_aim().bfloat16()).precision == "bfloat16"  # the network's type


def logged(caplog, options, model) -> tuple[str, str, list[str]]:
    """Return decoder, precision and log lines of `resolve`, called twice."""
    caplog.clear()
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="aim_lightning"):
        result = [resolve(options, model) for _ in range(2)][1]
    return result.decoder, result.precision, [record.getMessage() for record in caplog.records]


def test_auto_takes_the_fast_decoder_on_a_gpu_that_can_run_it(monkeypatch, caplog):
    auto, took = SamplingOptions(batch_size=4), "sampling.decoder auto took"
    plain = f"{took} plain, in float32: the fast decoder cannot be used: "
    assert auto.decoder == "auto" and logged(caplog, auto, random_aim()) == ("plain", "float32", [])
    narrow = "its kernels need d_state to be a power of two from 16 to 256"
    assert logged(caplog, auto, ON_GPU) == ("plain", "float32", [plain + narrow])
    monkeypatch.setattr(OPTIONS_MODULE, "obstacle", lambda config, device: None)
    fast = f"{took} fast, in bfloat16: the network is on an NVIDIA GPU"
    assert logged(caplog, auto, ON_GPU) == ("fast", "bfloat16", [fast])
    assert logged(caplog, replace(auto, precision="float32"), ON_GPU)[:2] == ("fast", "float32")
    assert logged(caplog, replace(auto, decoder="plain"), ON_GPU) == ("plain", "float32", [])
    dropout = SimpleNamespace(**{**vars(ON_GPU), "modules": lambda: [torch.nn.Dropout(0.1)]})
    assert logged(caplog, auto, dropout)[2] == [plain + "it has no dropout, which is in training mode"]
    half = SimpleNamespace(**{**vars(ON_GPU.lm_head.weight), "dtype": torch.float16})
    half = SimpleNamespace(**{**vars(ON_GPU), "lm_head": SimpleNamespace(weight=half)})
    assert logged(caplog, auto, half)[0] == "plain" and resolve(replace(auto, decoder="fast"), half).decoder == "fast"
    monkeypatch.setattr(filters, "FAST_FILTERS", ())
    assert logged(caplog, replace(auto, top_k=3), ON_GPU)[0] == "plain"


def test_pixels_on_a_gpu_are_bfloat16_and_those_of_scores_float32(monkeypatch):
    auto, gpu = SamplingOptions(), torch.device("cuda")
    pixels = lambda *arguments: pixel_decoder.resolve_pixels(*arguments).pixel_precision  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert [pixels(auto, gpu), pixels(auto, torch.device("cpu"))] == ["bfloat16", "float32"]
    assert pixels(auto.for_scores(), gpu) == "float32"
    chosen = SamplingOptions(pixel_precision="tf32")
    assert chosen.for_scores() == chosen and pixels(chosen, gpu) == "tf32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert pixels(auto, gpu) == "float32"


def test_too_many_images_name_the_batch_that_fits(pipeline, monkeypatch):
    """The error comes before any allocation, and includes the memory of pixels."""
    each = cache.bytes_needed(TINY, 1, True, torch.float32)
    weights = 4 * sum(parameter.numel() for parameter in pipeline.aim.parameters())
    monkeypatch.setattr(cache, "free_bytes", lambda device: weights + 40 * each)
    options = {"cfg_scale": 2.0, "decoder": "fast"}
    pipeline.generate(LABELS, batch_size=36, **options)
    with pytest.raises(UserError, match=r"a batch of 36 would fit \(sampling.batch_size\)"):
        pipeline.generate(LABELS, batch_size=37, **options)
    assert_user_error("a batch of 18 would fit", decoder_for, pipeline.aim, 19, True, torch.float32, pixel_bytes=each)
    # Also where `auto` took the fast decoder, which needs more memory for long sequences than the plain one.
    fast = lambda options, model: replace(options, decoder="fast", precision="float32")  # noqa: E731
    monkeypatch.setattr(OPTIONS_MODULE, "_with_decoder", fast)
    assert_user_error("a batch of 36 would fit", pipeline.generate, LABELS, batch_size=37, cfg_scale=2.0)


@pytest.mark.parametrize("step", ["codes", "pixels"])
def test_memory_that_runs_out_is_one_line(pipeline, monkeypatch, step):
    def fail(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(*{"codes": (pipeline.aim, "step"), "pixels": (pipeline.tokenizer, "decode")}[step], fail)
    assert_user_error(r"sampling 6 images at a time .* a batch of 3 would fit", pipeline.generate, LABELS, batch_size=6)


def test_decoders_go_with_the_pipeline():
    pipeline = AiMPipeline(random_aim(), VQModel(replace(TINY_VQ, image_size=4)))
    aim, batches = pipeline.aim, pipeline.batches(LABELS, batch_size=2, decoder="fast")
    del pipeline
    assert len(next(batches)) == 2 and aim in cache._decoders
    list(batches)
    assert aim not in cache._decoders


def test_pixels_are_the_tokenizers_and_nan_is_reported(pipeline):
    images = pipeline.generate(LABELS, seed=3, batch_size=5)
    codes = generate(pipeline.aim, torch.tensor(LABELS), seed=3)
    assert torch.equal(images, to_uint8(pipeline.tokenizer.decode(codes)))
    near = pipeline.generate(LABELS, seed=3, batch_size=5, pixel_precision="bfloat16")
    assert 0 < (near.int() - images.int()).abs().max() <= 8
    with torch.no_grad():
        pipeline.tokenizer.decoder.conv_out.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"pixels are not finite \(NaN\): the tokenizer's weights have diverged"):
        pipeline.generate(LABELS)


def test_float32_pixels_are_no_tf32_ones(pipeline, monkeypatch):
    """PyTorch's default is TF32 in convolutions on NVIDIA GPUs."""
    settings, decode = [], pipeline.tokenizer.decode
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    record = lambda codes: settings.append(torch.backends.cudnn.allow_tf32) or decode(codes)  # noqa: E731
    monkeypatch.setattr(pipeline.tokenizer, "decode", record)
    PixelDecoder(pipeline.tokenizer, torch.device("cpu"), "float32").start(torch.zeros(1, 4, dtype=torch.int64), 1)
    assert settings == [False] and torch.backends.cudnn.allow_tf32
    with pytest.raises(UserError, match="pixel_precision tf32 needs an NVIDIA GPU; use float32 here"):
        pipeline.resolve(SamplingOptions(pixel_precision="tf32"))


def test_the_package_lists_and_documents_its_public_names():
    assert {"AiMPipeline", "generate", "load"} <= set(dir(aim_lightning))
    assert aim_lightning.generate is generate and aim_lightning.AiMPipeline is AiMPipeline
    for function in (AiMPipeline.generate, AiMPipeline.batches):
        parameters = signature(function).parameters
        assert parameters["cfg_scale"].default == 1.0 and parameters["batch_size"].default == "auto"
        names = {"on_step", "allow_null_class", "indices", *(field.name for field in fields(SamplingOptions))}
        assert "options" not in parameters and names <= parameters.keys()
    with pytest.raises(AttributeError, match="has no attribute 'sample'"):
        aim_lightning.sample  # noqa: B018


def test_labels_are_numbers_or_names(pipeline):
    pipeline.class_names = ["tench", "crane", "a,b"]
    expected = pipeline.generate([1, 2, 0], seed=1)
    assert torch.equal(pipeline.generate(["crane", "a,b", 0], seed=1), expected)
    assert len(pipeline.generate([3], allow_null_class=True)) == 1


CASES = [
    (7, r"^labels is 7; give a list, such as \[7\]$"),
    ("tench", "^labels is 'tench'; give a list"),
    (None, "^labels is None; give a list"),
    (torch.tensor(7), "^labels is 7; give a list"),
    ([], "^labels is empty; give at least one$"),
    ([0.0, 1.0], "^labels: 0.0 is no label; give whole numbers or class names$"),
    (torch.zeros(2), "^labels: 0.0 is no label"),
    ([True], "^labels: True is no label"),
    ([torch.tensor(1.5)], "^labels: 1.5 is no label"),
    ([[0, 1]], r"^labels: \[0, 1\] is no label"),
    ([3], "^labels: 3 is not one of 0 to 2; the null class 3 needs allow_null_class=True$"),
    ([10**30], "^labels: 1000000000000000000000000000000 is not one of"),
    ([-1], "^labels: -1 is not one of 0 to 2"),
    (["tensh"], "^labels: there is no class 'tensh'; did you mean 'tench'"),
]


@pytest.mark.parametrize(("labels", "message"), CASES)
def test_labels_that_are_refused_in_one_line(pipeline, labels, message):
    pipeline.class_names = ["tench", "crane", "bag"]
    assert_user_error(message, pipeline.generate, labels)
    assert_user_error(
        "seed is -1; it must be a whole number, from 0 to 9223372036854775807", pipeline.generate, [0], seed=-1
    )
    for indices in ([0, 1], [0.5]):
        assert_user_error("^indices are .*; give one integer per label$", pipeline.generate, [0], indices=indices)


def test_unknown_options_get_a_suggestion(pipeline):
    assert_user_error(r"^generate has no option 'cfg'; did you mean cfg_scale\?$", pipeline.generate, [0], cfg=2)
    assert_user_error(r"^generate has no option 'topk'; did you mean top_k\?$", pipeline.generate, [0], topk=2)
    assert_user_error("^generate has no option 'zzz'; use cfg_scale, temperature,", pipeline.generate, [0], zzz=2)
    assert_user_error("did you mean cfg_scale", aim_lightning.generate, pipeline.aim, torch.tensor([0]), cfg=2)


def test_class_names_that_do_not_identify_the_classes_are_refused(pipeline):
    networks = pipeline.aim, pipeline.tokenizer
    for names in (["a"], "abc"):
        assert_user_error("^class_names is .*; give a list of 3 names$", AiMPipeline, *networks, names)
    pipeline.class_names = ["crane", "crane", "bag"]
    message = "^labels: 2 classes are called 'crane'; give the number of the class$"
    assert_user_error(message, pipeline.generate, ["crane"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_any_type_and_options_of_numpy(pipeline, dtype):
    images = pipeline.to(dtype).generate([0, 2], cfg_scale=np.float32(2), seed=np.int64(1))
    assert images.dtype == torch.uint8 and torch.equal(images, pipeline.generate([0, 2], cfg_scale=2, seed=1))


def test_a_grid_is_a_pil_image_and_the_repr_names_the_sizes(pipeline):
    grid = pipeline.grid(pipeline.generate(LABELS), columns=3)
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [1]):
        assert_user_error("; give a tensor uint8", pipeline.grid, images)
    assert grid.mode == "RGB" and grid.size == (3 * 130, 2 * 130)
    assert repr(pipeline).startswith("AiMPipeline(d_model=") and "device=cpu" in repr(pipeline)


def test_an_image_does_not_depend_on_the_others_but_for_one_grey_level(pipeline):
    images = pipeline.generate(LABELS, seed=5, batch_size=5)
    assert images.shape == (5, 3, 4, 4) and images.dtype == torch.uint8
    for size in (1, 2):
        assert (images.int() - pipeline.generate(LABELS, seed=5, batch_size=size).int()).abs().max() <= 1
    assert torch.equal(*(pipeline.generate(labels, seed=5, batch_size=3)[0] for labels in ([2], [2] * 3)))


def test_memory_of_pixels_follows_the_largest_tensor(pipeline):
    tokenizers = (VQModel(replace(TINY_VQ, image_size=size)) for size in (16, 32))
    small, large = (largest_output(tokenizer, torch.device("cpu")) for tokenizer in tokenizers)
    assert large == 4 * small and small >= 8 * 16 * 16
    assert not any(module._forward_hooks for module in pipeline.tokenizer.modules())


def test_the_configuration_takes_auto_and_schedules():
    values = {"batch_size": "auto", "cfg_schedule": "interval", "cfg_interval": [0.1, 0.9]}
    demo, options = ROOT / "experiments/demo_aim.yaml", [(f"sampling.{name}", str(values[name])) for name in values]
    assert compose_and_check(demo, *options).values["sampling"].items() >= values.items()
    # The third is an option of earlier versions.
    for name, wrong in (("batch_size", "many"), ("cfg_schedule", "square"), ("pixel_compile", "false")):
        assert_user_error(name, compose_and_check, demo, (f"sampling.{name}", wrong))
