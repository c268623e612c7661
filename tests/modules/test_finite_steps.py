"""Steps whose gradients are not finite: skipped or stopped at, read at once on a CPU and later on a GPU."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_user_error
from integration.tiny import Experiment, scalars, write_config, write_experiment
from modules.broken_steps import EVERY_STEP, assert_equal, assert_finite, break_steps, checkpoints
from torch import multiprocessing, nn

from aim_lightning.cli.main import main
from aim_lightning.modules import finite_steps
from aim_lightning.modules.finite_steps import FiniteSteps
from aim_lightning.modules.optim import OptimizerConfig, SkippingAdamW, clip_gradients
from aim_lightning.modules.tokenizer import TokenizerModule

NAN = math.nan
SKIP = OptimizerConfig(on_nonfinite="skip", max_skipped_in_a_row=3)


class Training:
    """A linear layer whose gradient is set, with its optimizer.

    Args:
        config: decides on steps that are not finite.
        fused: use the fused kernel, which reads both scalars on the device.
    """

    def __init__(self, config: OptimizerConfig, fused: bool = False) -> None:
        self.network = nn.Linear(2, 1, bias=False)
        nn.init.ones_(self.network.weight)
        self.optimizer = SkippingAdamW(self.network.parameters(), lr=0.1, fused=fused)
        self.finite, self.steps = FiniteSteps(config), 0

    def closure(self, gradient: list[float]) -> None:
        self.network.weight.grad = torch.tensor([gradient])
        norm = clip_gradients(self.network, 1.0, self.optimizer)
        self.finite.add(norm, self.steps, self.optimizer)

    def step(self, *gradient: float) -> None:
        self.optimizer.step(lambda: self.closure(gradient))
        self.steps += 1

    def state(self) -> list[float]:
        """Return weights, moments and the optimizer's step number."""
        values = self.optimizer.state[self.network.weight].values()
        return torch.cat([value.detach().flatten() for value in (self.network.weight, *values)]).tolist()


@pytest.fixture
def events(monkeypatch):
    """Defer reads as on a GPU, and return the steps whose events were waited for."""
    waited, started = [], []

    def start(norm):
        number = len(started)
        started.append(number)
        return norm.clone(), SimpleNamespace(synchronize=lambda: waited.append(number))

    monkeypatch.setattr(finite_steps, "start_copy", start)
    return waited


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_is_that_of_pytorch(fused):
    training, other = Training(SKIP, fused), nn.Linear(2, 1, bias=False)
    nn.init.ones_(other.weight)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    for gradient in ((3.0, 4.0), (0.1, 0.2), (-30.0, 1.0)):
        training.step(*gradient)
        other.weight.grad = torch.tensor([gradient])
        nn.utils.clip_grads_with_norm_([other.weight], 1.0, other.weight.grad.norm())
        optimizer.step()
        torch.testing.assert_close(training.network.weight, other.weight, rtol=1e-6, atol=0)
    assert training.optimizer.state_dict().keys() == optimizer.state_dict().keys()
    optimizer.load_state_dict(training.optimizer.state_dict())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_skipped_step_changes_nothing_and_is_counted(capsys, fused, value):
    training = Training(SKIP, fused)
    training.step(1.0, 2.0)
    before = training.state()
    training.step(value, 1.0)
    assert training.state() == before
    assert f"the gradient norm is {value} at step 1: the step is skipped" in capsys.readouterr().out
    training.step(1.0, 2.0)
    assert training.state() != before and all(map(math.isfinite, training.state()))
    assert (training.finite.skipped, training.finite.in_a_row) == (1, 0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_state_from_another_device_is_continued_with_the_kernels_of_this_one(fused):
    training, source = Training(SKIP, fused), Training(SKIP, not fused)
    source.step(3.0, 4.0)
    training.optimizer.load_state_dict(source.optimizer.state_dict())
    for _ in range(2):
        training.step(1.0, 1.0)
    assert training.optimizer.param_groups[0]["fused"] is fused
    assert training.optimizer.state_dict()["state"][0]["step"] == 3


def test_too_many_skipped_steps_in_a_row_stop_training():
    training = Training(SKIP)
    for gradient in (NAN, NAN, 1.0, NAN, NAN):
        training.step(gradient, 1.0)
    assert training.finite.skipped == 4
    assert_user_error("after 3 skipped steps in a row, the gradient norm is nan at step 5", training.step, NAN, 1.0)


def test_on_a_cpu_the_error_precedes_the_step():
    training = Training(OptimizerConfig())
    training.step(1.0, 2.0)
    before = training.state()
    assert_user_error("the gradient norm is inf at step 1: training stops; lower", training.step, math.inf, 1.0)
    assert training.state() == before


@pytest.mark.parametrize("fused", [False, True])
def test_norms_are_read_two_steps_later(events, fused):
    training = Training(SKIP, fused)
    for step, gradient in enumerate((1.0, NAN, 1.0, NAN, 1.0)):
        training.step(gradient, 1.0)
        assert events == list(range(max(step - 1, 0)))
    assert training.finite.skipped == 1
    training.finite.read()
    assert training.finite.skipped == 2 and events == [0, 1, 2, 3, 4] and not training.finite.pending


@pytest.mark.parametrize("fused", [False, True])
def test_steps_in_flight_change_nothing_before_training_stops(events, fused):
    training = Training(OptimizerConfig(), fused)
    training.step(1.0, 2.0)
    before = training.state()
    training.step(NAN, 1.0)
    training.step(1.0, 2.0)
    assert training.state() == before and events == [0]
    assert_user_error("the gradient norm is nan at step 1: training stops", training.step, 1.0, 2.0)
    assert training.state() == before


@pytest.mark.parametrize("hook", ["state_dict", "log boundary", "end"])
def test_norms_are_read_before_checkpoints_at_log_boundaries_and_at_the_end(events, hook):
    finite = Training(OptimizerConfig()).finite
    trainer = SimpleNamespace(global_step=7, log_every_n_steps=10)
    finite.add(torch.tensor(NAN), 6, Training(SKIP).optimizer)
    finite.on_train_batch_end(trainer, None, None, None, 0)
    trainer.global_step = 10
    read = {
        "state_dict": finite.state_dict,
        "log boundary": lambda: finite.on_train_batch_end(trainer, None, None, None, 0),
        "end": lambda: finite.on_train_end(trainer, None),
    }[hook]
    assert_user_error("the gradient norm is nan at step 6", read)


def test_only_a_run_with_skipped_steps_has_counts_in_its_checkpoint():
    training, restored = Training(SKIP), FiniteSteps(SKIP)
    assert training.finite.state_dict() == {}
    training.step(NAN, 1.0)
    restored.load_state_dict(training.finite.state_dict())
    assert (restored.skipped, restored.in_a_row) == (1, 1)


def skip_on_two_ranks(rank: int, directory: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    training = Training(SKIP)
    model = nn.parallel.DistributedDataParallel(training.network)
    for step in range(3):
        before = training.network.weight.detach().clone()
        training.optimizer.zero_grad()
        broken = rank == 1 and step == 1  # DDP averages the gradients of both ranks
        model(torch.full((1, 2), NAN if broken else 1.0 + rank)).sum().backward()
        training.optimizer.step(lambda: training.closure(training.network.weight.grad[0].tolist()))
        assert torch.equal(before, training.network.weight) == (step == 1)
    assert (training.finite.skipped, training.finite.in_a_row) == (1, 0)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_skip_together(tmp_path):
    multiprocessing.spawn(skip_on_two_ranks, (str(tmp_path),), nprocs=2)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment(write_experiment(tmp_path_factory.mktemp("finite")))


@pytest.mark.slow
def test_a_run_skips_steps_and_counts_them_across_restarts(experiment, own_signals, monkeypatch, capsys):
    break_steps(monkeypatch, 5, 6, 15)
    options = ("--model.optimizer.on_nonfinite", "skip", "--trainer.log_every_n_steps", 2)
    run_dir = experiment.fit("skip", *options, *EVERY_STEP)
    assert "the gradient norm is nan at step 15: the step is skipped" in capsys.readouterr().out
    content = checkpoints(run_dir)
    for step in (6, 7, 16):  # the network and AdamW's state; the average approaches the unchanged weights
        for part in ("network", "optimizers"):
            assert_equal(content[step][part], content[step - 1][part])
    assert_finite(content[22])
    assert len({str(content[step]["network"]) for step in content}) == 22 - 3
    counts = [(2, 0), (4, 0), (6, 1), (8, 2), (10, 2), (12, 2), (14, 2), (16, 3), (18, 3), (20, 3), (22, 3)]
    assert scalars(run_dir)["train/skipped_steps"] == counts
    cut = experiment.copy("skip", "skip_cut", 12)
    experiment.fit("skip_cut", *options, *EVERY_STEP)
    assert_equal(checkpoints(run_dir)[22], checkpoints(cut)[22])
    assert scalars(cut)["train/skipped_steps"] == counts


@pytest.mark.slow
def test_a_run_stops_with_finite_checkpoints_and_continues_with_skip(experiment, own_signals, monkeypatch, capsys):
    """Switching to `skip` needs no `--allow_changes`."""
    break_steps(monkeypatch, 5)
    assert main(experiment.words("fit", "stop", *EVERY_STEP)) == 2
    assert "error: the gradient norm is nan at step 5: training stops; lower" in capsys.readouterr().err
    content = checkpoints(experiment.runs / "stop")
    assert max(content) == 5
    assert_finite(content[5])
    run_dir = experiment.fit("stop", *EVERY_STEP, "--model.optimizer.on_nonfinite", "skip")
    assert dict(scalars(run_dir)["train/skipped_steps"])[22] == 1


@pytest.mark.slow
def test_the_tokenizer_skips_steps_of_both_networks(tmp_path, own_signals, monkeypatch):
    original = TokenizerModule._steps

    def steps(self, *arguments):
        network = {3: self.network, 4: self.discriminator}.get(self.global_step)
        if network is not None:
            next(network.parameters()).grad[0] = NAN
        original(self, *arguments)

    monkeypatch.setattr(TokenizerModule, "_steps", steps)
    experiment = Experiment(write_config(tmp_path, "tiny_tokenizer"))
    run_dir = experiment.fit("skip", "--model.optimizer.on_nonfinite", "skip", "--model.revival.every_n_steps", 1)
    content, curves = checkpoints(run_dir), scalars(run_dir)
    for step, same, other in ((4, "network", "discriminator"), (5, "discriminator", "network")):
        weights = [{key: dict(content[number][key]) for key in (same, other)} for number in (step - 1, step)]
        trained = [name for name in weights[0][same] if name.endswith((".weight", ".bias"))]
        assert all(torch.equal(weights[0][same][name], weights[1][same][name]) for name in trained)
        assert any(not torch.equal(weights[0][other][name], weights[1][other][name]) for name in weights[0][other])
    assert [dict(curves[f"train/skipped_steps{suffix}"])[8] for suffix in ("", "_discriminator")] == [1, 1]
