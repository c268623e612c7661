"""Learning rate and decay groups."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, assert_user_error
from torch import multiprocessing

from aim_lightning.models import AiM
from aim_lightning.modules.optim import (
    OptimizerConfig,
    StepMeans,
    build_optimizer,
    check_finite,
    check_scale,
    check_warmup,
    clip_gradients,
    decay_groups,
    learning_rate_factor,
    total_steps,
)
from aim_lightning.utils.errors import UserError


def test_only_matrices_decay():
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


def test_the_learning_rate_is_proportional_to_the_global_batch():
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


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "expected"),
    [(25, 3, 25), (50, 3, 30), (25, None, 25), (25, -1, 25), (-1, 3, 30), (-1, None, -1), (-1, -1, -1), (0, 3, 0)],
)
def test_training_ends_at_the_earlier_of_two_ends(max_steps, max_epochs, expected):
    trainer, datamodule = SimpleNamespace(max_steps=max_steps, max_epochs=max_epochs), SimpleNamespace()
    datamodule.batches_per_epoch = 10
    assert total_steps(trainer, datamodule) == expected


def test_a_decaying_schedule_needs_an_end():
    assert_user_error("needs an end", build_optimizer, torch.nn.Linear(2, 2), OptimizerConfig(), 8, -1)


def test_a_checkpoint_restores_the_step_but_no_settings():
    """Check the promise of `--allow_changes true`: a lower learning rate takes effect."""

    def build(**changes):
        torch.manual_seed(0)
        network = torch.nn.Linear(2, 2)
        config = OptimizerConfig(warmup_steps=2, final_fraction=0.1, **changes)
        return network, *build_optimizer(network, config, 256, 20)

    def steps(network, optimizer, schedule, count):
        for _ in range(count):
            optimizer.zero_grad()
            network(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            schedule.step()

    def loaded(like, **changes):
        network, optimizer, schedule = build(**changes)
        network.load_state_dict(like[0].state_dict())
        optimizer.load_state_dict(like[1].state_dict())
        schedule.load_state_dict(like[2].state_dict())
        return network, optimizer, schedule

    before = build()
    steps(*before, 5)
    same, other = loaded(before), loaded(before, base_learning_rate=1e-5, weight_decay=0.2, betas=(0.8, 0.9))
    steps(*before, 3)
    steps(*same, 3)
    assert torch.equal(before[0].weight, same[0].weight) and before[2].state_dict() == same[2].state_dict()
    groups = other[1].param_groups
    expected = 1e-5 * learning_rate_factor(OptimizerConfig(warmup_steps=2, final_fraction=0.1), 5, 20)
    assert [group["lr"] for group in groups] == other[2].get_last_lr() == [expected] * 2
    assert [group["weight_decay"] for group in groups] == [0.2, 0] and groups[0]["betas"] == (0.8, 0.9)
    steps(*other, 1)
    assert groups[0]["lr"] < expected and "settings" not in other[2].state_dict()


def step_of(rank: int) -> dict[str, float]:
    means = StepMeans()
    for micro_batch in range(2):
        values = {"loss": torch.tensor(4.0 * rank + micro_batch), "entropy": torch.tensor(-1.0)}
        result = means.add(values, is_last=micro_batch == 1)
        assert bool(result) == (micro_batch == 1)
    assert not means.micro_batches
    return {name: float(value) for name, value in result.items()}


def compare_means(rank: int, directory: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    assert step_of(rank) == {"loss": 2.5, "entropy": -1.0}
    torch.distributed.destroy_process_group()


def test_logged_values_are_means_over_micro_batches():
    assert step_of(0) == {"loss": 0.5, "entropy": -1.0}


@pytest.mark.slow
def test_logged_values_are_means_over_ranks(tmp_path):
    multiprocessing.spawn(compare_means, (str(tmp_path),), nprocs=2)


def test_a_value_that_is_not_finite_stops_training_without_a_promise_of_checkpoints():
    check_finite(torch.tensor(1.0), "the loss", 1)
    with pytest.raises(UserError, match="the loss is nan at step 1: training stops; lower") as error:
        check_finite(torch.tensor(float("nan")), "the loss", 1)
    assert "checkpoint" not in str(error.value)


@pytest.mark.parametrize("largest", [None, 0, 0.0])
def test_without_a_largest_norm_gradients_stay_as_they_are(largest):
    network = torch.nn.Linear(2, 1, bias=False)
    network.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(network, largest) == 5.0
    assert network.weight.grad.tolist() == [[3.0, 4.0]]
    clip_gradients(network, 1.0)
    assert network.weight.grad.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_a_scale_that_falls_too_low_stops_training():
    check_scale(2.0**-10, 5)
    assert_user_error("fell to 0.000488281 at step 5", check_scale, 2.0**-11, 5)


@pytest.mark.parametrize(("steps", "warned"), [(4, True), (5, False), (-1, False)])
def test_a_warm_up_beyond_the_last_step_is_warned_about(capsys, steps, warned):
    config = OptimizerConfig(warmup_steps=5)
    check_warmup(config, steps)
    assert ("model.optimizer.warmup_steps is 5, but training ends after 4 steps" in capsys.readouterr().out) == warned
    highest = max(learning_rate_factor(config, step, steps) for step in range(steps if steps > 0 else 6))
    assert (highest < 1) == warned
