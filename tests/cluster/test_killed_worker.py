"""A killed loader process ends a command with one line, in real processes of `fit`, `validate` and `tokenize`."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from integration.tiny import write_config
from test_slurm_cases import TOKENIZE

LINE = (
    r"error: loader process [\d, ]+ ended \((killed|exited unexpectedly)\), possibly for lack of memory; "
    r"lower data.num_workers or give the job more memory"
)
# Each batch waits in the main process, so that its loader process still has batches to deliver.
PROBE = """
model: {init_args: {adversarial: null}}
callbacks:
  reconstruction_metrics: null
  probe: {class_path: slurm_probe.Probe, init_args: {pause: 0.1, long: {validation: 30}}}
"""


def kill_workers(process: subprocess.Popen, until=lambda: True) -> str:
    """Kill each child of the process until it ends; return its standard error."""
    while process.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            for task in Path(f"/proc/{process.pid}/task").iterdir() if until() else ():
                for child in (task / "children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
    return process.communicate()[1]


def start(*words) -> subprocess.Popen:
    command = [sys.executable, "-m", "aim_lightning", *map(str, words), "--data.num_workers", "1"]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/slurm")))
    env = {**os.environ, "PYTHONPATH": paths, "TOKENIZER_PAUSE": "0.2", "SLURM_JOB_ID": "41"}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def assert_one_line(process: subprocess.Popen, error: str) -> None:
    assert process.returncode == 74, error
    assert re.fullmatch(LINE, error.strip().splitlines()[-1]), error
    assert error.count("Traceback") == 0 and error.count("error: ") == 1, error


@pytest.mark.slow
def test_a_killed_worker_of_fit_and_of_validate(tmp_path):
    experiment, run = write_config(tmp_path, "tiny_tokenizer"), tmp_path / "runs/tiny_tokenizer/main"
    (tmp_path / "probe.yaml").write_text(PROBE)
    files = ("--config", experiment, "--config", tmp_path / "probe.yaml")
    process = start("fit", *files)
    assert_one_line(process, kill_workers(process, lambda: list(run.glob("checkpoints/*.ckpt"))))
    assert '"code": 74' in (run / "outcome.json").read_text()
    process = start("validate", *files)
    assert_one_line(process, kill_workers(process))


@pytest.mark.slow
def test_a_killed_worker_of_tokenize(tmp_path):
    config = tmp_path / "tokenize.yaml"
    config.write_text(TOKENIZE)
    process = start("tokenize", "--config", config, "--batch_size", 20, "--data.out", tmp_path / "tokens")
    assert_one_line(process, kill_workers(process))


DESTRUCTORS = """
import aim_lightning.__main__
class Loader:
    def __init__(self, error): self.error = error
    def __del__(self): raise self.error
Loader(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
Loader(ValueError("another error"))
"""


def test_a_killed_worker_of_a_loader_that_is_being_deleted():
    done = subprocess.run([sys.executable, "-c", DESTRUCTORS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.count("Traceback") == 1 and "another error" in done.stderr
