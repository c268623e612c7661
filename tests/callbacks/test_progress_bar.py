"""Lines and bars of a training: step of all steps, loss, images/s, time left."""

import re
from types import SimpleNamespace

import pytest
from integration.tiny import write_experiment

from aim_lightning.callbacks.logging.progress_bar import RunProgressBar
from aim_lightning.utils.progress import ProgressBar

LINE = r"training: (\d+) of 22 steps, [\d.]+ steps/s, \d+ (?:s|min) left(, loss [\d.]+, \d+ images/s)?"


@pytest.fixture
def output(tmp_path, own_signals, succeed):
    """Return the function that trains the tiny experiment with a progress bar and returns its standard output."""
    options = ("--trainer.enable_progress_bar", "true", "--trainer.log_every_n_steps", "5")
    experiment = write_experiment(tmp_path)
    return lambda command="fit", *more: succeed(command, "--config", experiment, *options, *more)


def test_a_log_gets_plain_lines_with_step_loss_speed_and_time_left(output, monkeypatch):
    monkeypatch.setattr("aim_lightning.utils.progress.INTERVAL", 0.0)
    lines = [re.fullmatch(LINE, line) for line in output().splitlines() if line.startswith("training:")]
    assert [int(line[1]) for line in lines] == list(range(1, 23))  # no step between logged ones comes too early
    assert [int(line[1]) for line in lines if line[2]] == [5, 10, 15, 20]


def test_the_first_line_appears_early_and_later_ones_once_per_minute(output, recwarn):
    """Epochs have 7 steps: steps are logged across epochs, so Lightning's advice about the interval does not apply."""
    text = output("fit", "--trainer.log_every_n_steps", "8")
    lines = [line for line in text.splitlines() if line.startswith("training:")]
    assert [line.split()[1] for line in lines] == ["8", "22"]
    assert not [warning for warning in recwarn if "logging interval" in str(warning.message)]


def test_a_stopped_training_shows_its_last_step(capsys):
    trainer = SimpleNamespace(is_global_zero=True, log_every_n_steps=5, callback_metrics={"train/loss": 2.5})
    callback = RunProgressBar()
    callback.bar = ProgressBar("training", 22, "steps", leave=True, early=True)
    for trainer.global_step in range(1, 9):
        callback.on_train_batch_end(trainer, None, None, None, 0)
    callback.on_exception(trainer, None, KeyboardInterrupt())
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" of")[0] for line in lines] == ["training: 5", "training: 8"]
    assert "loss 2.5000" in lines[0] and "loss" not in lines[1]


def test_a_terminal_shows_the_step_of_all_steps_also_after_a_restart(output, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    output("fit", "--trainer.max_steps", "10", "--model.optimizer.schedule", "constant")
    text = output("fit", "--trainer.max_steps", "22", "--model.optimizer.schedule", "constant")
    assert "10/22" in text and "22/22" in text and "Epoch" not in text
    assert " -2" not in text and "/-2" not in text


def test_validate_shows_one_bar(output, monkeypatch):
    output()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    text = output("validate")
    assert "validation" in text and "Validation DataLoader" not in text
