"""The discriminator: published sizes and start, and batch norm over processes."""

import pytest
import torch
from metrics.builders import on_ranks
from torch import nn

from aim_lightning.models import PatchGAN, PatchGANConfig
from aim_lightning.models.patchgan import SyncedBatchNorm2d


def test_published_sizes_names_and_start():
    torch.manual_seed(0)
    network = PatchGAN(PatchGANConfig())
    assert sum(p.numel() for p in network.parameters()) == 2_765_633
    weights = network.state_dict()
    widths = [(64, 3), (128, 64), (256, 128), (512, 256), (1, 512)]
    assert [tuple(weights[f"main.{i}.weight"].shape) for i in (0, 2, 5, 8, 11)] == [(*pair, 4, 4) for pair in widths]
    assert "main.2.bias" not in weights and (weights["main.11.bias"] == 0).all()
    for i in (2, 5, 8):
        values = weights[f"main.{i}.weight"]
        assert values.mean().abs() < 1e-3 and values.std() == pytest.approx(0.02, rel=0.05)
    assert weights["main.9.weight"].mean() == pytest.approx(1.0, abs=0.01) and (weights["main.9.bias"] == 0).all()


@pytest.mark.parametrize(("layers", "size"), [(3, 64), (2, 32), (1, 16)])
def test_one_logit_per_patch(layers, size):
    config = PatchGANConfig(layers, 4)
    with torch.no_grad():
        logits = PatchGAN(config)(torch.rand(2, 3, size, size))
    side = config.patches(size)
    assert logits.shape == (2, 1, side, side) and side == size // 2**layers - 2


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_the_receptive_field_matches_the_docstring(layers, field):
    network = PatchGAN(PatchGANConfig(layers, 4)).eval()
    images = torch.zeros(1, 3, 96, 96, requires_grad=True)
    logits = network(images)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == field


def _pass(norm: nn.BatchNorm2d, images: torch.Tensor) -> dict:
    """Run a training step of a loss that weights every value by its content."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    x = images.clone().requires_grad_()
    out = norm(x)
    (out * images.sin()).sum().backward()
    gradients = {"weight": norm.weight.grad, "bias": norm.bias.grad}
    return {"out": out.detach(), "x": x.grad, **gradients, "state": norm.state_dict()}


def test_batch_norm_of_two_processes_equals_that_of_the_full_batch(tmp_path):
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1
    result = on_ranks(lambda rank: _pass(SyncedBatchNorm2d(3), images.chunk(2)[rank]), tmp_path)
    complete = _pass(nn.BatchNorm2d(3), images)
    for name in ("out", "x"):
        assert torch.allclose(torch.cat([part[name] for part in result]), complete[name], atol=1e-5), name
    for name in ("weight", "bias"):
        assert torch.allclose(result[0][name] + result[1][name], complete[name], atol=1e-4), name
    for name, value in complete["state"].items():
        assert torch.allclose(result[0]["state"][name], value, atol=1e-5), name
        assert torch.equal(result[0]["state"][name], result[1]["state"][name]), name


def test_without_a_process_group_it_is_plain_batch_norm():
    images = torch.randn(4, 3, 5, 5)
    synced, plain = _pass(SyncedBatchNorm2d(3), images), _pass(nn.BatchNorm2d(3), images)
    assert torch.equal(synced["out"], plain["out"]) and torch.equal(synced["x"], plain["x"])
