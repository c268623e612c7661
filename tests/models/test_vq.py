"""The VQ tokenizer against the published fixture, and its documented behaviour."""

import dataclasses

import pytest
import torch
from helpers import TINY_VQ, fixture, published_vq8, relative
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aim_lightning.models import VQConfig, VQModel


@pytest.mark.slow
def test_parity_with_the_published_vq8():
    model, (facts, data) = published_vq8(), fixture("vq8")
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == facts["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == 70_109_835
    with torch.no_grad():
        assert relative(model.latent(data["image"]), data["latent"]) <= 1e-4
        clear = data["index_margin"] >= 1e-5
        assert torch.equal(model.encode(data["image"])[clear], data["indices"][clear])
        decoded = model.decode(data["indices"])
    assert relative(decoded[:, :, ::8, ::8], data["decoded_every_8th"]) <= 1e-4
    assert relative(decoded.mean((2, 3)), data["decoded_mean"]) <= 1e-4
    assert relative(decoded.std((2, 3)), data["decoded_std"]) <= 1e-4


def test_vq16_size():
    with torch.device("meta"):
        model = VQModel(VQConfig())
    assert sum(p.numel() for p in model.parameters()) == 71_883_403
    assert (model.grid, model.codebook_size) == ((16, 16), 16384)


@pytest.mark.parametrize("multipliers", [(1, 2), (1, 1, 2), (2,)])
def test_flops_are_those_that_torch_counts(multipliers):
    model = VQModel(dataclasses.replace(TINY_VQ, channel_multipliers=multipliers, num_res_blocks=2))
    images = torch.rand(1, 3, 16, 16, requires_grad=True)  # so that each layer has both of its gradients
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # not counted when fused
        model(images).images_BCHW.sum().backward()
    assert model.flops_per_image() == counter.get_total_flops()


def test_codes_are_int64_in_raster_order():
    model = VQModel(TINY_VQ).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = model.encode(images)
    assert codes.shape == (2, 64) and codes.dtype == torch.int64
    vectors = model.quantize.lookup(codes, model.grid)
    book = torch.nn.functional.normalize(model.quantize.embedding.weight, dim=-1)
    assert torch.equal(vectors[0, :, 3, 5], book[codes[0, 3 * 8 + 5]])  # row 3, column 5
    assert model.decode(codes).shape == images.shape


def test_gradient_passes_straight_through():
    model = VQModel(TINY_VQ)
    result = model(torch.rand(2, 3, 16, 16))
    result.images_BCHW.sum().backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.quantize.embedding.weight.grad is None  # only the codebook loss moves the codes


def test_each_quantisation_loss_moves_one_side_only():
    torch.manual_seed(0)
    quantizer, latent = VQModel(TINY_VQ).quantize, torch.randn(2, 8, 4, 4, requires_grad=True)
    result, sides = quantizer(latent), (latent, quantizer.embedding.weight)
    distance = (result.quantized_BCHW - result.latent_BCHW).square().mean().item()
    for loss, moved in ((result.codebook_loss, 1), (result.commitment_loss, 0)):
        assert loss.item() == pytest.approx(distance)
        gradients = torch.autograd.grad(loss, sides, allow_unused=True, retain_graph=True)
        assert gradients[1 - moved] is None and gradients[moved].any()


def test_weights_hash_follows_weights_alone():
    torch.manual_seed(0)
    model = VQModel(TINY_VQ)
    before = model.weights_hash
    model.quantize.codebook_used += 1
    assert model.weights_hash == before
    with torch.no_grad():
        model.quant_conv.bias += 1e-3
    assert model.weights_hash != before


def test_usage_record_and_start_from_data():
    torch.manual_seed(0)
    model = VQModel(TINY_VQ).train()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    latent = model.latent(images).detach()
    model.quantize.start_from(latent, torch.Generator().manual_seed(0))
    codes = model(images).quantized.codes_BL.flatten()
    model.quantize.record_usage(codes)
    assert torch.equal(model.quantize.codebook_used.long(), codes[-64:])
    chosen = model.quantize.lookup(model.quantize.codes(latent), (8, 8))
    nearest = torch.nn.functional.cosine_similarity(chosen, latent, dim=1)
    assert nearest.max() > 0.9999  # codes are latents of this very batch
