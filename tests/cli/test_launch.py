"""How many processes `tokenize` starts without a launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from helpers import assert_user_error, wait_for, write_program

from aim_lightning.cli.build.evaluation_setup import start
from aim_lightning.cli.multiprocess import local_processes, rank_or_launch
from aim_lightning.utils.process import RANKS, ProcessRank

CPU = {"accelerator": "cpu"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*RANKS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("devices", "count"), [("auto", 1), (-1, 1), (1, 1), (3, 3), ("2", 2)])
def test_one_process_per_device(devices, count):
    assert local_processes({**CPU, "devices": devices}) == count


def test_one_process_needs_no_launch_and_a_launcher_sets_the_rank(monkeypatch):
    assert rank_or_launch({**CPU, "devices": 1}) == ProcessRank()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_or_launch({**CPU, "devices": 1}) == ProcessRank(1, 4, 0)


CASES = [
    ({**CPU, "devices": [0, 1]}, "CUDA_VISIBLE_DEVICES"),
    ({**CPU, "devices": "0,1"}, "CUDA_VISIBLE_DEVICES"),
    ({**CPU, "devices": "two"}, "devices is two; give a number"),
    ({**CPU, "devices": 1, "num_nodes": 2}, "torchrun or srun, or set NODE_RANK"),
]


@pytest.mark.parametrize(("trainer", "word"), CASES)
def test_devices_that_cannot_be_launched_are_refused(trainer, word):
    assert_user_error(word, rank_or_launch, trainer)


def test_devices_that_an_evaluation_cannot_use_are_one_line():
    assert_user_error("trainer: .* should be an int > 0", start, SimpleNamespace(trainer={**CPU, "devices": "two"}))


def test_when_one_process_fails_the_launch_fails_with_its_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["aim-lightning", "tokenize", "--config", "nowhere.yaml"])
    assert rank_or_launch({**CPU, "devices": 2}) == 2


@pytest.mark.parametrize(("codes", "code"), [((1, 2), 2), ((143, 2), 2), ((1, -9), 137), ((1, -15), 1), ((0, 0), 0)])
def test_the_most_specific_code_is_returned(codes, code, tmp_path, monkeypatch):
    """1 is also that of a process that misses another one, 143 that of one that the launcher stops."""
    ends = "; ".join(f"[ $RANK = {i} ] && {_ending(number)}" for i, number in enumerate(codes))
    child = write_program(tmp_path / "child", f"trap '' TERM\nsleep 0.5\n{ends}")
    monkeypatch.setattr(sys, "executable", str(child))
    assert rank_or_launch({**CPU, "devices": 2}) == code


def _ending(code: int) -> str:
    return f"exit {code}" if code >= 0 else f"{{ trap - TERM; kill {code} $$; }}"


# Stands in for the interpreter of the children: each records its start and then works for a minute.
CHILD = f"""import os, pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from aim_lightning.cli.multiprocess import rank_or_launch
process = rank_or_launch({CPU!r})
assert "AIM_LAUNCHER" not in os.environ
pathlib.Path(sys.argv[-1], str(process.rank)).write_text(str(os.getpid()))
time.sleep(60)
"""
LAUNCHER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from aim_lightning.cli.multiprocess import rank_or_launch
sys.executable = sys.argv[1]
rank_or_launch({{**{CPU!r}, "devices": 2}})
"""


def runs(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.slow
def test_children_end_with_a_launcher_that_was_killed(tmp_path):
    child, started = write_program(tmp_path / "child", CHILD, sys.executable), tmp_path / "started"
    started.mkdir()
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(child), str(started)])
    wait_for(lambda: len([path for path in started.iterdir() if path.read_text()]) == 2)
    children = [int(path.read_text()) for path in started.iterdir()]
    time.sleep(0.5)
    assert launcher.poll() is None and all(map(runs, children))
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    wait_for(lambda: not any(map(runs, children)), 10)
