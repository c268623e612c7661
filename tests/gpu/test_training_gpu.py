"""Training of stage 2 on an NVIDIA GPU: no synchronisation, steps that are not finite, and resume to the bit."""

import signal
import time

import pytest
import torch
from helpers import TINY, write_tokens
from integration.tiny import Experiment, scalars, series, write_config
from modules.broken_steps import EVERY_STEP, assert_equal, assert_finite, break_steps, checkpoints

from aim_lightning.cli.main import main
from aim_lightning.modules.aim import AiMModule
from aim_lightning.runs.directory import list_checkpoints, newest_checkpoint, step_of

pytestmark = pytest.mark.gpu
GPU = ("--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed", "--model.backend", "triton")
GPU += ("--model.network.mixer_dropout", 0)  # the kernels have none
GRAPH = ("--model.network.token_dropout", 0)  # needed for CUDA graphs
both_ways = pytest.mark.parametrize("options", [GPU, (*GPU, *GRAPH)], ids=["eager", "graph"])
RARE_LOGS = ("--trainer.log_every_n_steps", 20, "--callbacks.checkpoints.every_n_steps", 20)
RARE_LOGS += ("--trainer.val_check_interval", 20)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Return the tiny experiment with 32 steps per epoch, since the end of an epoch is a log boundary too."""
    if not torch.cuda.is_available():
        pytest.fail("no GPU that torch can use; these tests are for a machine that has one")
    root = tmp_path_factory.mktemp("training")
    for split, rows, seed in (("train", [90, 90, 77], 0), ("val", [19], 1)):
        write_tokens(root / "tokens" / split, rows, views=2, config=TINY, seed=seed)
    return Experiment(write_config(root))


@both_ways
@pytest.mark.usefixtures("own_signals")
def test_ten_steps_never_wait_for_the_gpu(experiment, monkeypatch, options):
    """The window holds the steps 3 to 12, with the reads of their batches, and no log, validation or checkpoint."""
    seen = []

    def start(module, batch, batch_idx):
        seen.append((module.global_step, torch.cuda.get_sync_debug_mode()))
        torch.cuda.set_sync_debug_mode("error" if 3 <= module.global_step < 13 else "default")

    monkeypatch.setattr(AiMModule, "on_train_batch_start", start)
    try:
        experiment.fit(f"asynchronous{len(options)}", *options, *RARE_LOGS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [step for step, mode in seen if mode == 2] == list(range(4, 14)) and len(seen) == 22


@pytest.mark.usefixtures("own_signals")
def test_a_step_that_is_not_finite_is_skipped(experiment, monkeypatch):
    break_steps(monkeypatch, 5, 15)
    run_dir = experiment.fit("skip", *GPU, *EVERY_STEP, "--model.optimizer.on_nonfinite", "skip")
    content = checkpoints(run_dir)
    for step in (6, 16):
        for part in ("network", "optimizers"):
            assert_equal(content[step][part], content[step - 1][part])
    assert_finite(content[22])
    assert dict(scalars(run_dir)["train/skipped_steps"])[22] == 2


@pytest.mark.usefixtures("own_signals")
def test_training_stops_with_the_weights_before_a_step_that_is_not_finite(experiment, monkeypatch, capsys):
    before = break_steps(monkeypatch, 5)
    assert main(experiment.words("fit", "stop", *GPU, *GRAPH, *RARE_LOGS)) == 2
    assert "error: the gradient norm is nan at step 5: training stops; lower" in capsys.readouterr().err
    module, weights = before[0]
    assert module.global_step > 5  # a step was in flight
    assert all(torch.equal(weights[name].cpu(), value.cpu()) for name, value in module.network.state_dict().items())
    assert not list_checkpoints(experiment.runs / "stop")


@both_ways
def test_a_killed_run_continues_to_the_bit(experiment, options):
    """Compare all curves but those of speed, and every tensor of the last checkpoint."""
    names = [f"{name}{len(options)}" for name in ("killed", "reference")]
    killed, reference = (experiment.runs / name for name in names)
    options = (*options, "--trainer.max_steps", 60)
    process = experiment.start("fit", killed.name, *options)
    deadline = time.monotonic() + 200
    while not list_checkpoints(killed) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert list_checkpoints(killed), output
    stopped = step_of(newest_checkpoint(killed))
    assert 4 <= stopped < 60
    for run in names:
        result = experiment.process("fit", run, *options)
        assert result.returncode == 0, result.stdout
        assert (f"training from step {stopped}" in result.stdout) == (run == killed.name)
    assert_equal(checkpoints(killed)[60], checkpoints(reference)[60])
    assert series(killed) == series(reference) and len(series(killed)["train/loss"]) == 60


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_continue_to_the_bit(experiment):
    options = (*GPU, "--trainer.devices", 2, "--trainer.max_steps", 60)
    process = experiment.start("fit", "stopped", *options)
    deadline = time.monotonic() + 200
    while not list_checkpoints(experiment.runs / "stopped") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    for run in ("stopped", "whole"):
        result = experiment.process("fit", run, *options)
        assert result.returncode == 0, result.stdout
        assert ("training from the start" in result.stdout) == (run == "whole")
    stopped, whole = experiment.runs / "stopped", experiment.runs / "whole"
    assert_equal(checkpoints(stopped)[60], checkpoints(whole)[60])
    assert series(stopped) == series(whole)
