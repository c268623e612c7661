"""Codebook usage and the revival of unused codes."""

import pytest
import torch
from helpers import TINY_VQ
from torch.nn import functional as F

from aim_lightning.models import VQModel
from aim_lightning.modules.codebook import CodeCounts, RevivalConfig, perplexity, revive, usage


def test_usage_and_perplexity():
    counts = torch.tensor([3, 3, 0, 3, 0, 3])
    assert usage(counts) == pytest.approx(4 / 6) and perplexity(counts) == pytest.approx(4.0)
    assert perplexity(torch.tensor([7, 0, 0])) == pytest.approx(1.0)
    assert 1 < perplexity(torch.tensor([7, 1, 0])) < 2
    metric = CodeCounts(4)
    metric.update(torch.tensor([[0, 3], [3, 3]]))
    metric.update(torch.tensor([1]))
    assert metric.compute().tolist() == [1, 1, 0, 3]


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    quantizer = VQModel(TINY_VQ).quantize
    quantizer.record_usage(torch.arange(64) % 10)  # codes 10 to 15 are unused
    return quantizer


def test_only_unused_codes_become_latents(quantizer):
    before, latent = quantizer.embedding.weight.detach().clone(), torch.randn(2, 8, 4, 4)
    assert quantizer.recent_counts().tolist() == [7.0] * 4 + [6.0] * 6 + [0.0] * 6
    assert revive(quantizer, latent, seed=0, step=50) == 6
    after = quantizer.embedding.weight.detach()
    assert torch.equal(after[:10], before[:10])
    rows = F.normalize(latent, dim=1).movedim(1, -1).reshape(-1, 8)
    assert ((after[10:] @ rows.T).amax(1) > 1 - 1e-6).all()


def test_the_selected_latents_depend_on_seed_and_step_only(quantizer):
    latent, start = torch.randn(2, 8, 4, 4), quantizer.embedding.weight.detach().clone()
    results = {}
    for seed, step in ((0, 50), (0, 100), (1, 50)):
        for noise in (0, 1):
            torch.manual_seed(noise)  # the global generator has no effect
            with torch.no_grad():
                quantizer.embedding.weight.copy_(start)
            revive(quantizer, latent, seed, step)
            results.setdefault((seed, step), []).append(quantizer.embedding.weight.detach().clone())
    assert all(torch.equal(*pair) for pair in results.values())
    assert not any(torch.equal(results[0, 50][0], results[other][0]) for other in ((0, 100), (1, 50)))


def test_more_unused_codes_than_latents(quantizer):
    assert revive(quantizer, torch.randn(1, 8, 1, 2), seed=0, step=1) == 6
    assert quantizer.embedding.weight[10:].unique(dim=0).shape[0] == 2


def test_revival_is_due_every_n_steps_until_a_step():
    assert not RevivalConfig().due(50)
    config = RevivalConfig(every_n_steps=50, until_step=100)
    assert [step for step in range(1, 300) if config.due(step)] == [50, 100]
    assert RevivalConfig(every_n_steps=50).due(1000)
    assert not any(RevivalConfig(every_n_steps=50, until_step=0).due(step) for step in (50, 100))


def test_the_record_keeps_the_latest_codes(quantizer):
    quantizer.record_usage(torch.full((2, 4), 11))
    assert quantizer.codebook_used[-8:].tolist() == [11.0] * 8
    assert quantizer.codebook_used[:56].tolist() == [float(i % 10) for i in range(8, 64)]
