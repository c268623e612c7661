"""Codes to pixels on an NVIDIA GPU: concurrently with sampling of the next batch, and what remains afterwards."""

import gc
import math

import pytest
import torch
from gpu.test_fast_gpu import network
from helpers import relative

from aim_lightning.models import VQConfig, VQModel
from aim_lightning.models.vq.fused import FusedDecoder
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.pipeline.pixel_decoder import DECODED_AT_ONCE, PixelDecoder
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.pixels import to_uint8
from aim_lightning.utils.precision import exact_products

pytestmark = pytest.mark.gpu


def pipeline() -> AiMPipeline:
    torch.manual_seed(0)
    tokenizer = VQModel(VQConfig(image_size=128, base_channels=32, codebook_size=2000)).requires_grad_(False)
    return AiMPipeline(network("group"), tokenizer)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_decoding_concurrently_with_the_next_batch_equals_decoding_in_series(precision):
    made, labels = pipeline(), torch.arange(22) % 10
    options = {"batch_size": 4, "cfg_scale": 2.0, "decoder": "fast", "seed": 2, "pixel_precision": precision}
    decoder = PixelDecoder(made.tokenizer, torch.device("cuda"), precision)
    exact = PixelDecoder(made.tokenizer, torch.device("cuda"), "float32")
    codes, last = [], made.aim.config.num_tokens - 1
    keep = lambda step, sofar: codes.append(sofar.clone()) if step == last else None  # noqa: E731
    images = list(made.batches(labels, on_step=keep, **options))
    assert [len(batch) for batch in images] == [4, 4, 4, 4, 4, 2]
    for batch, sampled in zip(images, codes, strict=True):
        with exact_products(precision == "tf32"):
            serial = to_uint8(decoder.decode(sampled))
        if precision == "bfloat16":  # another algorithm of cuDNN rounds differently: both are as near to float32
            with exact_products():
                expected = to_uint8(exact.decode(sampled)).float()
            assert (batch - expected).abs().mean() <= 1.2 * (serial - expected).abs().mean()
        else:
            assert (serial.int() - batch.int()).abs().max() <= 1  # cuDNN may take another algorithm
    assert all(map(torch.equal, images, made.batches(labels, **options)))


@pytest.mark.parametrize("images", [1, 16])
def test_the_fused_decoder_is_as_accurate_as_autocast(images):
    """With the published sizes; and again with other weights in place."""
    torch.manual_seed(0)
    tokenizer = VQModel(VQConfig()).cuda().eval().requires_grad_(False)
    codes = torch.randint(0, tokenizer.codebook_size, (images, 256), device="cuda")
    with exact_products():
        expected = tokenizer.decode(codes)
    with torch.autocast("cuda", torch.bfloat16):
        autocast = relative(tokenizer.decode(codes).float(), expected)
    decode = PixelDecoder(tokenizer, torch.device("cuda"), "bfloat16").decode
    assert isinstance(decode.__self__, FusedDecoder)
    fused = [relative(decode(codes).float(), expected) for _ in range(2)]
    assert fused[0] == fused[1] and fused[0] <= 1.2 * autocast


def test_large_batches_are_decoded_in_parts():
    tokenizer = VQModel(VQConfig(image_size=32, base_channels=32, codebook_size=100)).cuda().eval()
    decoder = PixelDecoder(tokenizer, torch.device("cuda"), "bfloat16")
    codes = torch.randint(0, 100, (2 * DECODED_AT_ONCE + 3, 4), device="cuda")
    parts = [decoder.start(part, len(part)).images() for part in codes.split(DECODED_AT_ONCE)]
    assert torch.equal(decoder.start(codes, len(codes)).images(), torch.cat(parts))


def test_reading_a_batch_does_not_wait_for_the_next_one():
    """Otherwise no batch would be decoded while another one is sampled."""
    decoder = PixelDecoder(pipeline().tokenizer, torch.device("cuda"), "bfloat16")
    codes = torch.randint(0, 2000, (4, math.prod(decoder.tokenizer.grid)), device="cuda")
    decoder.start(codes, 4).images()  # compiles the kernels
    first = decoder.start(codes, 4)
    with torch.cuda.stream(decoder._stream):
        torch.cuda._sleep(2_000_000_000)  # cycles, about one second, in place of the next batch
    images = first.images()
    assert not decoder._stream.query()
    assert torch.equal(images, decoder.start(codes, 4).images())


def test_pixels_follow_the_weights_of_the_tokenizer():
    made, options = pipeline(), {"batch_size": 4, "seed": 2}
    before = made.generate([1, 2], **options)
    with torch.no_grad():
        made.tokenizer.decoder.conv_out.bias += 1
    assert (made.generate([1, 2], **options).float() - before.float()).mean() > 20


def test_fused_pixels_are_nearly_those_of_float32():
    made, options = pipeline(), {"batch_size": 4, "decoder": "fast", "seed": 2}
    plain, fused = (made.generate([1, 2, 3, 4], pixel_precision=name, **options) for name in ("float32", "bfloat16"))
    assert (plain.int() - fused.int()).abs().float().mean() <= 2


def test_nothing_stays_on_the_device_after_the_pipeline():
    model, before = network("group"), torch.cuda.memory_allocated()
    made = AiMPipeline(model, pipeline().tokenizer)
    made.generate([1, 2, 3], decoder="fast", cfg_scale=2.0)
    assert torch.cuda.memory_allocated() > before
    del made
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**26  # cuBLAS keeps a workspace


def test_auto_is_a_power_of_two_and_stays():
    made, options = pipeline(), SamplingOptions(batch_size="auto", decoder="fast")
    size = made.resolve(options).batch_size
    assert size in [2**i for i in range(9)] and made.resolve(options).precision == "bfloat16"
    made.generate([1, 2], decoder="fast")
    assert made.resolve(options).batch_size == size
