"""Terms of the tokenizer's loss."""

import pytest
import torch
from helpers import TINY_VQ
from torch.nn import functional as F

from aim_lightning import losses
from aim_lightning.losses import TokenizerLoss, entropy_loss
from aim_lightning.models import VQModel


@pytest.fixture
def batch():
    torch.manual_seed(0)
    model = VQModel(TINY_VQ)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    return images, model(images), model.quantize.codebook_VC


def test_the_loss_is_the_weighted_sum(batch):
    images, result, _ = batch
    weights = {"perceptual_weight": 3.0, "codebook_weight": 0.5, "commitment_weight": 0.75}
    loss = TokenizerLoss("l1", 2.0, perceptual_file="x", **weights)
    terms = loss.terms(*batch, lambda one, other: (one - other).square().mean((1, 2, 3)))
    each = terms.each
    assert set(each) == {"reconstruction", "perceptual", "codebook", "commitment"}
    assert torch.allclose(each["reconstruction"], (result.images_BCHW - images).abs().mean())
    assert torch.allclose(each["perceptual"], (result.images_BCHW - images).square().mean())
    assert torch.allclose(terms.pixels, 2 * each["reconstruction"] + 3 * each["perceptual"])
    assert torch.allclose(terms.loss, terms.pixels + 0.5 * each["codebook"] + 0.75 * each["commitment"])


def test_a_term_of_weight_zero_needs_no_file(batch):
    terms = TokenizerLoss(perceptual_file="/nowhere").terms(*batch)
    assert set(terms.each) == {"reconstruction", "codebook", "commitment"}
    assert torch.allclose(terms.each["reconstruction"], F.mse_loss(batch[1].images_BCHW, batch[0]))


def published(latent, codebook, temperature):
    """Compute the published formula from negative squared distances."""
    rows = latent.movedim(1, -1).flatten(0, -2)
    affinity = -torch.cdist(rows, codebook).square() / temperature
    probabilities, mean = affinity.softmax(-1), affinity.softmax(-1).mean(0)
    each = -(probabilities * affinity.log_softmax(-1)).sum(-1).mean()
    return each + (mean * (mean + 1e-5).log()).sum()


def test_entropy_equals_the_published_formula_also_in_parts(batch, monkeypatch):
    leaves = [torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(16, 8, requires_grad=True)]

    def value_and_gradients(loss):
        value = loss(*(F.normalize(leaf, dim=1) for leaf in leaves), 0.3)
        return value.item(), torch.autograd.grad(value, leaves)

    expected, gradients = value_and_gradients(published)
    for rows in (16384, 7):
        monkeypatch.setattr(losses, "ROWS_AT_A_TIME", rows)
        value, computed = value_and_gradients(entropy_loss)
        assert value == pytest.approx(expected, abs=1e-5)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(computed, gradients, strict=True))


def test_entropy_is_low_for_certain_and_evenly_used_codes():
    codebook = torch.eye(8)
    even = codebook.T.reshape(1, 8, 2, 4)  # each code once
    one = codebook[:1].T[None, :, :, None].expand(1, 8, 2, 4)
    unsure = F.normalize(torch.ones(1, 8, 2, 4), dim=1)
    values = [entropy_loss(latent, codebook, 0.05).item() for latent in (even, one, unsure)]
    assert values[0] == pytest.approx(-torch.tensor(8.0).log().item(), abs=1e-3)
    assert values[1] == pytest.approx(0, abs=1e-3) and values[2] == pytest.approx(0, abs=1e-3)


def test_entropy_term_is_in_the_sum(batch):
    terms = TokenizerLoss(entropy_weight=0.5, entropy_temperature=0.1).terms(*batch)
    rest = terms.pixels + terms.each["codebook"] + 0.25 * terms.each["commitment"]
    assert torch.allclose(terms.loss, rest + 0.5 * terms.each["entropy"])
