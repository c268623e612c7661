"""Learning rate and decay groups."""

from itertools import pairwise

import pytest
import torch
from helpers import TINY

from aim_lightning.models import AiM
from aim_lightning.modules.optim import OptimizerConfig, build_optimizer, decay_groups, learning_rate_factor
from aim_lightning.utils.errors import UserError


def test_decay_reaches_matrices_and_nothing_else():
    model = AiM(TINY)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in decay_groups(model, 0.05))
    assert decayed | kept == set(names.values()) and not decayed & kept
    assert all(
        any(
            n.endswith(e)
            for e in ("A_log", "dt_bias", "D", "bias", "norm.weight", "norm_f.weight", "norm_final.weight")
        )
        for n in kept
    )
    assert "backbone.embeddings.word_embeddings.weight" in decayed
    assert "backbone.layers.0.scale_shift_table" in decayed
    assert not any(n.endswith(("A_log", "dt_bias", ".D")) for n in decayed)


def test_rate_follows_the_global_batch():
    optimizer, _ = build_optimizer(AiM(TINY), OptimizerConfig(schedule="constant"), 2048, -1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(8e-4)
    assert optimizer.param_groups[1]["weight_decay"] == 0


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 1.0), ("linear", 0.55), ("cosine", 0.55)])
def test_schedules(schedule, middle):
    config = OptimizerConfig(warmup_steps=10, schedule=schedule, final_fraction=0.1)
    factors = [learning_rate_factor(config, step, 110) for step in range(200)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0
    assert factors[60] == pytest.approx(middle)
    assert factors[110] == factors[199] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert all(a >= b for a, b in pairwise(factors[9:]))


def test_a_decaying_schedule_needs_an_end():
    with pytest.raises(UserError, match="needs an end"):
        build_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(), 8, -1)
