"""experiments/fashion_mnist_tokenizer/run.sh: seconds are those of training, however often it was stopped."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = "experiments/fashion_mnist_tokenizer/run.sh"
# Stands in for the interpreter: notes the call; `fit` makes the run's directory and trains until `slow` is gone.
STUB = """#!/usr/bin/env bash
echo "$*" >>calls
if [ "$3" = fit ]; then
  run=$(grep -o -- '--run [a-z]*' <<<"$*" | cut -d' ' -f2)
  mkdir -p "runs/fashion_mnist_tokenizer/$run"
  while [ -e slow ]; do sleep 0.1; done
fi
"""


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / SCRIPT).parent.mkdir(parents=True)
    shutil.copy(ROOT / SCRIPT, tmp_path / SCRIPT)
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def start(place: Path, *options: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHON": "./python"}
    return subprocess.Popen(["bash", SCRIPT, *options], cwd=place, env=environment, start_new_session=True)


def seconds(place: Path, run: str) -> list[int]:
    file = place / "runs/fashion_mnist_tokenizer" / run / "fit_seconds"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def calls(place: Path, command: str) -> int:
    return sum(f"aim_lightning {command} " in line for line in (place / "calls").read_text().splitlines())


def test_stopped_training_counts_and_a_finished_run_adds_nothing(place):
    (place / "slow").touch()
    running = start(place)
    while not (place / "runs/fashion_mnist_tokenizer/adversarial").exists():
        time.sleep(0.05)
    time.sleep(2)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(10) != 0
    assert len(first := seconds(place, "adversarial")) == 1 and first[0] >= 1
    (place / "slow").unlink()
    assert start(place).wait(20) == 0
    assert len(seconds(place, "adversarial")) == 2 and len(seconds(place, "plain")) == 1
    before = [seconds(place, run) for run in ("adversarial", "plain")], calls(place, "fit")
    assert start(place).wait(20) == 0  # everything is finished
    assert ([seconds(place, run) for run in ("adversarial", "plain")], calls(place, "fit")) == before
    assert start(place, "--trainer.max_steps", "9").wait(20) == 0  # other options: trained on
    assert len(seconds(place, "plain")) == 2
    assert "tokenizer_report.py runs/fashion_mnist_tokenizer adversarial plain" in (place / "calls").read_text()
