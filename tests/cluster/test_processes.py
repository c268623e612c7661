"""Signals, hangs and loader processes, in real processes that import no torch."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

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


def python(code: str, *arguments, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, **more)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [([signal.SIGTERM], 1), ([signal.SIGUSR1], 2), ([signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM], 2)],
)
def test_a_handler_only_sets_a_flag_and_the_warning_counts_most(sent, expected):
    done = python(SIGNALS, "now", *map(int, sent))
    assert done.returncode == 0 and f"received {expected}" in done.stdout, done.stderr


@pytest.mark.skipif(
    subprocess.run(["env", "--block-signal=USR1", "true"], capture_output=True).returncode != 0,
    reason="env of coreutils 8.31 or newer is needed; the job script then ignores early signals instead",
)
def test_a_signal_before_the_handlers_waits_for_them():
    process = subprocess.Popen(
        ["sh", "-c", HOLD, "-", sys.executable, "-c", SIGNALS, "late"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=60)[0].startswith("ready 2") and process.returncode == 0


@pytest.mark.skipif(
    subprocess.run(["env", "--block-signal=USR1", "true"], capture_output=True).returncode != 0,
    reason="env of coreutils 8.31 or newer is needed; the job script then ignores early signals instead",
)
@pytest.mark.parametrize("late", [True, False])
def test_who_asks_for_stacks_ends_nothing(late):
    """Neither a process that has none to show, such as torchrun's agent, nor training before its handlers are there."""
    code = SIGNALS if late else "import sys, time; print('up', flush=True); time.sleep(1); print('ready 0')"
    process = subprocess.Popen(
        ["sh", "-c", HOLD, "-", sys.executable, "-c", code, "late"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR2)
    assert process.communicate(timeout=60)[0].startswith("ready 0") and process.returncode == 0


def test_without_env_s_help_an_early_signal_is_at_least_survived(tmp_path):
    old = tmp_path / "env"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    process = subprocess.Popen(
        [shutil.which("sh"), "-c", HOLD, "-", sys.executable, "-c", SIGNALS, "late"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=60)[0].startswith("ready 0") and process.returncode == 0


ASKED = """
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
    done = python(ASKED)
    assert done.returncode == 0 and done.stdout.split() == ["answered", "received", "2"], done.stderr


TAKEN = """
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


def test_handlers_that_llvm_took_are_set_again():
    """A kernel that Triton compiles costs us our handlers, which nothing in Python shows."""
    pytest.importorskip("triton")
    done = python(TAKEN)
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


CASES = [
    ("python", 70, "rank 5: no progress for 2 s in the batch after step 3"),
    ("library", 1, "Timeout"),
    ("none", 0, ""),
]


@pytest.mark.parametrize(("where", "code", "words"), CASES)
def test_a_hang_ends_with_the_stacks_and_work_does_not(where, code, words):
    done = python(HANG, where)
    assert done.returncode == code and words in done.stderr, done.stderr
    assert ('File "<string>", line 7 in work' in done.stderr) == (where != "none")


SUSPENDED = """
import time
from aim_lightning.cluster.watchdog import Watchdog
from aim_lightning.utils.process import beat
with Watchdog(4):
    beat("work")
    print("up", flush=True)
    end = time.process_time() + 0.3  # does not pass while the process is suspended
    while time.process_time() < end: pass
    beat("a hang")
    time.sleep(60)
"""


def test_a_process_that_was_suspended_does_not_count_as_hung_but_is_watched_afterwards():
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
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
    start = time.monotonic()
    done = python(WORKER)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 20
