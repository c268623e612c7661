"""Initialisation as published."""

import math

import pytest
import torch

from aim_lightning.models import AiM, AiMConfig

OPTIONS = {"d_model": 64, "n_layer": 4, "vocab_size": 50, "num_classes": 6, "num_tokens": 9, "num_groups": 2}


@pytest.mark.parametrize("d_intermediate", [0, 48])
def test_plain_adaln_is_the_identity_through_every_block(d_intermediate):
    torch.manual_seed(0)
    model = AiM(AiMConfig(adaln="layer", d_intermediate=d_intermediate, **OPTIONS))
    rows, x = model.backbone.condition(torch.arange(3)).layers, torch.randn(3, 5, 64)
    for i, layer in enumerate(model.backbone.layers):
        out, residual = layer(x, None, rows[i])
        assert not out.any() and torch.equal(residual, x)


def test_group_adaln_starts_with_small_gates():
    torch.manual_seed(0)
    model = AiM(AiMConfig(adaln="group", **OPTIONS))
    gates = torch.stack([rows[:, 2] for rows in model.backbone.condition(torch.arange(6)).layers])
    assert 0 < gates.abs().mean() < 0.3


@pytest.mark.parametrize(("d_intermediate", "branches"), [(0, 2), (256, 4)])
def test_distributions(d_intermediate, branches):
    torch.manual_seed(0)
    sizes = {"d_model": 512, "n_layer": 2, "d_intermediate": d_intermediate}
    model = AiM(AiMConfig(vocab_size=500, num_classes=6, num_tokens=9, **sizes))
    layer = model.backbone.layers[0]
    mixer = layer.mixer
    a, dt = mixer.A_log.exp(), torch.nn.functional.softplus(mixer.dt_bias)
    assert a.min() >= 1 and a.max() <= 16
    assert dt.min() >= 0.00099 and dt.max() <= 0.101
    assert torch.equal(mixer.D, torch.ones_like(mixer.D))
    assert float(model.lm_head.weight.std()) == pytest.approx(0.02, rel=0.05)
    for projection in [mixer.out_proj, layer.mlp.fc2] if d_intermediate else [mixer.out_proj]:
        bound = 1 / math.sqrt(projection.in_features * branches)
        assert float(projection.weight.abs().max()) == pytest.approx(bound, rel=0.01)
    biases = [p for n, p in model.named_parameters() if n.endswith(".bias") and "conv1d" not in n]
    assert biases and all(not p.any() for p in biases)


def test_one_group_is_shared_by_all_layers():
    model = AiM(AiMConfig(adaln="group", **{**OPTIONS, "num_groups": 1}))
    for layer in model.backbone.layers:
        torch.nn.init.zeros_(layer.scale_shift_table)
    rows = model.backbone.condition(torch.tensor([1])).layers
    assert all(torch.equal(row, rows[0]) for row in rows)


def test_groups_are_interleaved():
    model = AiM(AiMConfig(adaln="group", **OPTIONS))
    for layer in model.backbone.layers:
        torch.nn.init.zeros_(layer.scale_shift_table)
    rows = model.backbone.condition(torch.tensor([1])).layers
    assert torch.equal(rows[0], rows[2]) and torch.equal(rows[1], rows[3])
    assert not torch.equal(rows[0], rows[1])
