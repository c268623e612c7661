"""Lines and bars of a training: step of all steps, loss, images/s, time left."""

import re

import pytest
from integration.tiny import write_experiment

LINE = r"training: (\d+) of 22 steps, [\d.]+ steps/s, \d+ s left(, loss [\d.]+, \d+ images/s)?"


@pytest.fixture
def output(tmp_path, own_signals, succeed):
    """Return the function that trains the tiny experiment with a progress bar and returns its standard output."""
    options = ("--trainer.enable_progress_bar", "true", "--trainer.log_every_n_steps", "5")
    experiment = write_experiment(tmp_path)
    return lambda command="fit", *more: succeed(command, "--config", experiment, *options, *more)


def test_a_log_gets_plain_lines_with_step_loss_speed_and_time_left(output, monkeypatch):
    monkeypatch.setattr("aim_lightning.utils.progress.INTERVAL", 0.0)
    lines = [re.fullmatch(LINE, line) for line in output().splitlines() if line.startswith("training:")]
    assert [int(line[1]) for line in lines] == [5, 10, 15, 20, 22]
    assert all(line[2] for line in lines[:4])


def test_the_first_line_appears_early_and_later_ones_once_per_minute(output):
    lines = [line for line in output().splitlines() if line.startswith("training:")]
    assert [line.split()[1] for line in lines] == ["5", "22"]


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
