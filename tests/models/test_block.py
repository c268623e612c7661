"""A block's branches: the order of the modulation's rows, and where dropout acts."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY, random_aim, random_weights, relative

from aim_lightning.models import AiMConfig
from aim_lightning.models.aim.block import Block

WITH_MLP = replace(TINY, d_intermediate=24)


@pytest.mark.parametrize("config", [TINY, WITH_MLP], ids=["mixer", "mixer and MLP"])
def test_rows_are_shifts_then_scales_then_gates_mixer_first(config: AiMConfig):
    """The published order: shift_mixer, shift_mlp, scale_mixer, scale_mlp, gate_mixer, gate_mlp."""
    torch.manual_seed(0)
    block = random_weights(Block(config), vectors=True).eval()
    x, rows = torch.randn(2, 5, 32), torch.randn(2, config.modulation_rows, 32)
    shifts, scales, gates = rows[:, :, None].unflatten(1, (3, -1)).unbind(1)  # each (2, branches, 1, 32)
    residual, out = x, gates[:, 0] * block.mixer(block.norm(x) * (1 + scales[:, 0]) + shifts[:, 0])
    if config.d_intermediate:
        residual = x + out
        out = gates[:, 1] * block.mlp(block.norm2(residual) * (1 + scales[:, 1]) + shifts[:, 1])
    result, result_residual = block(x, None, rows)
    assert relative(result, out) <= 1e-6 and relative(result_residual, residual) <= 1e-6


@pytest.mark.parametrize("name", ["token_dropout", "mixer_dropout", "mlp_dropout"])
def test_every_dropout_acts_in_training_and_not_in_evaluation(name):
    config = replace(WITH_MLP, **{name: 0.5})
    codes, labels = torch.randint(16, (2, 3)), torch.tensor([0, 2])
    dropped, plain = (random_aim(sizes, 0.3, vectors=True) for sizes in (config, WITH_MLP))
    expected = plain(codes, labels)
    assert torch.equal(dropped(codes, labels), expected)
    first, second = (dropped.train()(codes, labels) for _ in range(2))
    assert relative(first, expected) > 0.01 and relative(second, first) > 0.01
    assert torch.equal(plain.train()(codes, labels), expected)
