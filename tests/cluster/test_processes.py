"""Signals, hangs and killed loader processes, in real processes."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, python
from helpers import write_program
from integration.tiny import write_config

from aim_lightning.cluster.sbatch_script import TEMPLATE

HOLD = TEMPLATE.partition("sh -c '")[2].partition("'")[0]

SIGNALS = """
import os, signal, sys, time
from aim_lightning.cluster import signals
assert not any(name in sys.modules for name in ("torch", "lightning", "yaml"))
if "late" in sys.argv: print("up", flush=True); time.sleep(1)
signals.install()
print("ready", signals.received(), flush=True)
time.sleep(0.2)
for number in map(int, sys.argv[2:]): os.kill(os.getpid(), number)
print("received", signals.received(), flush=True)
"""


def start(*command, **env) -> subprocess.Popen:
    """Start a process whose output is read later."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in command], env=os.environ | env, **pipes)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [([signal.SIGTERM], 1), ([signal.SIGUSR1], 2), ([signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM], 2)],
)
def test_a_handler_only_sets_a_flag_and_the_warning_counts_most(sent, expected):
    done = python("-c", SIGNALS, "now", *map(int, sent))
    assert done.returncode == 0 and f"received {expected}" in done.stdout, done.stderr


WITHOUT_HANDLERS = "import time; print('up', flush=True); time.sleep(1); print('ready 0')"  # such as torchrun's agent
EARLY = [
    (SIGNALS, signal.SIGUSR1, True, "ready 2"),
    (SIGNALS, signal.SIGUSR2, True, "ready 0"),
    (WITHOUT_HANDLERS, signal.SIGUSR2, True, "ready 0"),
    (SIGNALS, signal.SIGUSR1, False, "ready 0"),
]


@pytest.mark.parametrize(("code", "number", "env_blocks", "output"), EARLY)
def test_a_signal_before_the_handlers_ends_nothing(tmp_path, code, number, env_blocks, output):
    """SIGUSR1 waits for the handlers where `env` can block it; a request for stacks is ignored."""
    path = os.environ["PATH"]
    if not env_blocks:
        write_program(tmp_path / "env", "exit 1")
        path = f"{tmp_path}:{path}"
    elif subprocess.run(["env", "--block-signal=USR1", "true"], capture_output=True).returncode:
        pytest.skip("env of coreutils 8.31 or newer is needed; the job script then ignores early signals instead")
    process = start(shutil.which("sh"), "-c", HOLD, "-", sys.executable, "-c", code, "late", PATH=path)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.communicate(timeout=60)[0].startswith(output) and process.returncode == 0


QUERY = """
import time
from aim_lightning.cluster import signals
from aim_lightning.cluster.slurm_api import command
signals.install()
print(command("sh", "-c", "kill -TERM $PPID $$; kill -USR1 $PPID $$; echo answered"))
time.sleep(0.1)
print("received", signals.received())
"""


def test_a_signal_to_the_job_does_not_end_the_command_that_queries_slurm():
    """`scontrol requeue` gets SIGTERM like every process of the job that it requeues."""
    done = python("-c", QUERY)
    assert done.returncode == 0 and done.stdout.split() == ["answered", "received", "2"], done.stderr


LLVM = """
import os, signal, time
from aim_lightning.cluster import signals
from aim_lightning.callbacks.training.stop_request import wake_llvm
def sent(number):
    os.kill(os.getpid(), number)
    time.sleep(0.1)
    return signals.received()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts without
signals.install()
wake_llvm()
print("without", sent(signal.SIGUSR1), flush=True)
signals.keep()
print("with", sent(signal.SIGTERM), sent(signal.SIGUSR1), sent(signal.SIGUSR2), flush=True)
try: sent(signal.SIGINT)
except KeyboardInterrupt: print("interrupted", flush=True)
"""


def test_handlers_that_llvm_replaced_are_installed_again():
    pytest.importorskip("triton")
    done = python("-c", LLVM)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["without 0", "with 1 2 2", "interrupted"]
    assert "most recent call first" in done.stderr  # SIGUSR2: the stacks


HANG = """
import ctypes, sys, time
from aim_lightning.cluster.watchdog import Watchdog
from aim_lightning.utils.process import beat
def work():
    beat("the batch after step 3")
    time.sleep(100) if sys.argv[1] == "python" else ctypes.PyDLL(None).sleep(100)
with Watchdog(2, rank=5):
    for _ in range(6):
        beat("a busy phase")
        time.sleep(0.5)
    if sys.argv[1] != "none": work()
"""

HANGS = [
    ("python", 70, "rank 5: no progress for 2 s in the batch after step 3"),
    ("library", 1, "Timeout"),
    ("none", 0, ""),
]


@pytest.mark.parametrize(("cause", "code", "message"), HANGS)
def test_a_hang_ends_with_the_stacks_and_work_does_not(cause, code, message):
    done = python("-c", HANG, cause)
    assert done.returncode == code and message in done.stderr, done.stderr
    assert ('File "<string>", line 7 in work' in done.stderr) == (cause != "none")


SUSPENDED = """
import time
from aim_lightning.cluster.watchdog import Watchdog
from aim_lightning.utils.process import beat
with Watchdog(4, rank=0):
    beat("work")
    print("up", flush=True)
    end = time.process_time() + 0.3  # does not pass while the process is suspended
    while time.process_time() < end: pass
    beat("a hang")
    time.sleep(60)
"""


def test_a_process_that_was_suspended_does_not_count_as_hung_but_is_watched_afterwards():
    process = start(sys.executable, "-c", SUSPENDED)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 70 and "no progress for 4 s in a hang" in error, error


WORKER = """
import os, signal, sys, time
from aim_lightning.utils.process import outlive_signals
ready = os.pipe()
child = os.fork()
if child == 0:
    outlive_signals()
    os.write(ready[1], b"x")
    time.sleep(30)
    os._exit(9)
os.read(ready[0], 1)
other = os.fork()
if other == 0:  # as slurmstepd: not the parent
    os.kill(child, signal.SIGTERM); os.kill(child, signal.SIGUSR1)
    os._exit(0)
os.waitpid(other, 0)
time.sleep(0.3)
assert os.waitpid(child, os.WNOHANG) == (0, 0), "the worker did not outlive"
os.kill(child, signal.SIGTERM)
deadline = time.monotonic() + 10
while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline: time.sleep(0.01)
assert done[0] == child and os.waitstatus_to_exitcode(done[1]) == 0, done
"""


def test_a_loader_process_obeys_its_parent_alone():
    started = time.monotonic()
    done = python("-c", WORKER)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 20


LINE = (
    r"error: loader process [\d, ]+ ended \((killed|exited unexpectedly)\), possibly for lack of memory; "
    r"lower data.num_workers or give the job more memory"
)


def assert_killed_worker_is_one_line(*words, until=lambda: True) -> None:
    """Run a command with one loader process; kill each child from the time that `until` returns true."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/slurm")))
    command = (sys.executable, "-m", "aim_lightning", *words, "--data.num_workers", 1)
    process = start(*command, PYTHONPATH=paths, TOKENIZER_PAUSE="0.2", SLURM_JOB_ID="41")
    while process.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            for task in Path(f"/proc/{process.pid}/task").iterdir() if until() else ():
                for child in (task / "children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
    error = process.communicate()[1]
    assert process.returncode == 74, error
    assert re.fullmatch(LINE, error.strip().splitlines()[-1]), error
    assert error.count("Traceback") == 0 and error.count("error: ") == 1, error


@pytest.mark.long
def test_a_killed_worker_of_fit_and_of_validate(tmp_path):
    experiment, run = write_config(tmp_path, "tiny_tokenizer"), tmp_path / "runs/tiny_tokenizer/main"
    files = ("--config", experiment, "--config", ROOT / "tests/cluster/probe.yaml")
    assert_killed_worker_is_one_line("fit", *files, until=lambda: list(run.glob("checkpoints/*.ckpt")))
    assert '"code": 74' in (run / "outcome.json").read_text()
    assert_killed_worker_is_one_line("validate", *files)


@pytest.mark.slow
def test_a_killed_worker_of_tokenize(tmp_path):
    options = ("--batch_size", 20, "--data.out", tmp_path / "tokens")
    assert_killed_worker_is_one_line("tokenize", "--config", ROOT / "tests/slurm/tokenize.yaml", *options)


DESTRUCTORS = """
import aim_lightning.__main__
class Loader:
    def __init__(self, error): self.error = error
    def __del__(self): raise self.error
Loader(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
Loader(ValueError("another error"))
"""


def test_a_killed_worker_of_a_loader_that_is_being_deleted():
    done = python("-c", DESTRUCTORS)
    assert done.returncode == 0 and done.stderr.count("Traceback") == 1 and "another error" in done.stderr
