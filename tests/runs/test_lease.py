"""One training per run directory."""

import errno
import json
import os
import socket
import time

import pytest
from conftest import start_python
from helpers import assert_user_error, wait_for

from aim_lightning.runs import lease as module
from aim_lightning.runs.lease import Lease
from aim_lightning.utils.errors import TransientError

IMPORTS = """
import json, os, sys, time
from pathlib import Path
from aim_lightning.runs import lease
from aim_lightning.utils.errors import UserError
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lease.json"


def start(code, path, *arguments):
    """Start a process with `path` in the namespace of its code."""
    return start_python("-c", f"{IMPORTS}path = Path({str(path)!r})\n{code}", *arguments)


def finish(process):
    """Return exit code and output."""
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.strip()


def hold(path, age=0.0, **holder):
    """Write the lease of another host, `age` seconds after its last heartbeat."""
    path.parent.mkdir(exist_ok=True)  # a lease removes an empty directory
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "77", **holder}))
    os.utime(path, (time.time() - age,) * 2)


def take(path, **options):
    """Take a lease, release it, and return its content."""
    with Lease(path, **options):
        return json.loads(path.read_text())


@pytest.fixture
def losses(monkeypatch):
    """The time, message and exit code of each lost lease, which then ends no process."""
    losses = []
    monkeypatch.setattr(module, "_exit", lambda *loss: losses.append((time.monotonic(), *loss)))
    return losses


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_second_holder_is_refused_and_the_lease_ends_with_the_block(tmp_path):
    path = tmp_path / "run" / "lease.json"
    with Lease(path):
        assert_user_error(f"trained by process {os.getpid()} on", take, path)
        assert path.exists()
    assert not path.exists()
    take(path)


def test_a_dead_process_on_this_host_frees_it(path):
    assert finish(start("lease.Lease(path).__enter__(); os._exit(0)", path))[0] == 0
    assert path.exists() and take(path)["pid"] == os.getpid()


def test_another_host_counts_until_its_heartbeat_is_old(path):
    hold(path, age=5)
    assert_user_error("job 77", take, path)
    hold(path, age=120)
    take(path)


def test_a_full_disk_ends_no_lease(path, losses, monkeypatch):
    """A heartbeat sets the modification time and writes no bytes."""
    with Lease(path, 0.05, stale_seconds=2):
        first = path.stat().st_mtime
        monkeypatch.setattr(module, "write_text", full)
        monkeypatch.setattr(type(path), "write_text", full)
        time.sleep(2.5)
        assert path.stat().st_mtime > first
        assert_user_error("is being trained by process", take, path, stale_seconds=2)
    assert not losses


def test_each_outage_of_the_heartbeat_is_warned_about_once_and_tried_again(path, losses, monkeypatch, capfd):
    calls, utime = [], os.utime

    def fails_twice(*arguments):
        calls.append(arguments)
        if len(calls) in (1, 2, 4, 5):
            raise OSError(errno.ESTALE, "Stale file handle")
        utime(*arguments)

    monkeypatch.setattr(module.os, "utime", fails_twice)
    with Lease(path, 0.05, stale_seconds=30):
        wait_for(lambda: len(calls) > 6)
    errors = capfd.readouterr().err
    assert not losses and errors.count("Stale file handle") == errors.count("trying again") == errors.count("\n") == 2


def test_a_process_without_heartbeat_exits_before_another_may_take_the_run(path, losses, monkeypatch):
    monkeypatch.setattr(module.os, "utime", full)
    begin = time.monotonic()
    with Lease(path, 0.5, stale_seconds=3):
        wait_for(lambda: losses)
    ((end, reason, code),) = losses
    assert 2.4 <= end - begin < 3 and code == TransientError.exit_code
    assert "No space left on device" in reason and "another process may take it" in reason


def test_it_exits_with_the_code_that_requeues_the_job(path):
    code = """
def utime(*_): raise OSError(5, "Input/output error")
lease.os.utime = utime
with lease.Lease(path, beat_seconds=0.05, stale_seconds=0.2):
    time.sleep(30)
"""
    code, errors = finish(start(code, path))
    assert code == TransientError.exit_code == 74 and "Input/output error" in errors


def test_a_lease_that_cannot_be_written_leaves_nothing(path, monkeypatch):
    monkeypatch.setattr(Lease, "_text", full)
    with pytest.raises(TransientError, match=r"lease.json cannot be used .No space left on device"):
        take(path)
    assert not list(path.parent.iterdir())


def test_a_file_that_was_just_created_counts_as_held(path):
    path.touch()
    assert_user_error("another process that has just started", take, path)


def test_a_requeued_job_takes_over_from_its_earlier_start_on_another_node(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    hold(path, starts=0)
    assert take(path)["starts"] == 1
    hold(path, starts=1, host=socket.gethostname())  # a second training of the same start
    assert_user_error("job 77", take, path)


def test_a_job_waits_for_a_dead_node_and_refuses_a_living_one(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    hold(path)
    begin = time.monotonic()
    take(path, beat_seconds=0.1, stale_seconds=1.0)
    assert time.monotonic() - begin >= 0.9
    path.parent.mkdir(exist_ok=True)
    process = start(
        """
for _ in range(100):
    path.with_suffix(".new").write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "5"}))
    path.with_suffix(".new").rename(path)
    time.sleep(0.1)
""",
        path,
    )
    wait_for(path.exists)
    assert_user_error("job 5", take, path, beat_seconds=0.2, stale_seconds=30)
    process.kill()
    process.communicate()


def test_a_process_that_died_while_taking_over_blocks_no_other(path):
    hold(path, age=1000)
    code = "lease.write_text = lambda *_: os._exit(0)\nlease.Lease(path).__enter__()"
    assert finish(start(code, path))[0] == 0
    assert len(list(path.parent.glob(".lease*"))) == 1 and json.loads(path.read_text())["host"] == "elsewhere"
    with Lease(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert [entry.name for entry in path.parent.iterdir()] == ["lease.json"]


@pytest.mark.parametrize("_", range(3))
def test_of_many_that_see_a_dead_lease_one_gets_it(path, _):
    hold(path, age=1000)
    code = """
path.with_name("ready-" + sys.argv[1]).touch()
while not path.with_name("go").exists(): time.sleep(0.001)
try:
    with lease.Lease(path):
        print("held", flush=True)
        time.sleep(1.5)
except UserError:
    print("refused", flush=True)
"""
    processes = [start(code, path, str(number)) for number in range(6)]
    wait_for(lambda: len(list(path.parent.glob("ready-*"))) == len(processes))
    path.with_name("go").touch()
    assert sorted(finish(process)[1] for process in processes) == ["held"] + ["refused"] * 5
    assert not list(path.parent.glob(".lease*"))


def test_a_lost_lease_is_reported_and_the_new_one_stays(path, losses):
    with Lease(path, 0.05):
        hold(path)
        wait_for(lambda: losses)
    ((_, reason, code),) = losses
    assert "taken over by process 1 on elsewhere" in reason and code == 2
    assert json.loads(path.read_text())["host"] == "elsewhere"
