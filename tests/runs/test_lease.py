"""One training per run directory."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from aim_lightning.runs import lease as module
from aim_lightning.runs.lease import Lease
from aim_lightning.utils.errors import TransientError, UserError


def test_second_holder_is_refused_and_the_lease_ends_with_the_block(tmp_path):
    path = tmp_path / "run" / "lease.json"
    with Lease(path):
        with pytest.raises(UserError, match=f"trained by process {os.getpid()} on"), Lease(path):
            pass
        assert path.exists()
    assert not path.exists()
    with Lease(path):
        pass


def test_a_dead_process_on_this_host_frees_it(tmp_path):
    path = tmp_path / "lease.json"
    code = (
        "import os; from pathlib import Path; from aim_lightning.runs.lease import Lease; "
        f"Lease(Path({str(path)!r})).__enter__(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert path.exists()
    with Lease(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def other_host(path, age):
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "77"}))
    os.utime(path, (time.time() - age,) * 2)


def test_another_host_counts_until_its_heartbeat_is_old(tmp_path):
    path = tmp_path / "lease.json"
    other_host(path, age=5)
    with pytest.raises(UserError, match=r"job 77"), Lease(path):
        pass
    other_host(path, age=120)
    with Lease(path):
        pass


def test_the_heartbeat_beats(tmp_path):
    path = tmp_path / "lease.json"
    with Lease(path, beat_seconds=0.05):
        first = path.stat().st_mtime
        time.sleep(0.3)
        assert path.stat().st_mtime > first


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_no_lease(tmp_path, monkeypatch):
    """A heartbeat writes no bytes."""
    path, lost = tmp_path / "lease.json", []
    with Lease(path, beat_seconds=0.05, stale_seconds=2, on_lost=lost.append):
        monkeypatch.setattr(module, "write_text", full)
        monkeypatch.setattr(type(path), "write_text", full)
        time.sleep(2.5)
        with pytest.raises(UserError, match="is being trained by process"), Lease(path, stale_seconds=2):
            pass
    assert not lost


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_failed_heartbeat_is_warned_about_once_and_tried_again(tmp_path, monkeypatch, capfd):
    path, lost, calls, utime = tmp_path / "lease.json", [], [], os.utime

    def fails_three_times(*arguments):
        calls.append(arguments)
        if len(calls) <= 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        utime(*arguments)

    monkeypatch.setattr(module.os, "utime", fails_three_times)
    with Lease(path, beat_seconds=0.05, stale_seconds=30, on_lost=lost.append):
        wait_for(lambda: len(calls) > 5)
    err = capfd.readouterr().err
    assert not lost and err.count("Stale file handle") == err.count("\n") == 1 and "trying again" in err


def test_a_process_without_heartbeat_exits_before_another_may_take_the_run(tmp_path, monkeypatch):
    path, lost = tmp_path / "lease.json", []
    monkeypatch.setattr(module.os, "utime", full)
    start = time.monotonic()
    with Lease(path, beat_seconds=0.5, stale_seconds=3, on_lost=lambda reason: lost.append((time.monotonic(), reason))):
        wait_for(lambda: lost)
    ((end, reason),) = lost
    assert 2.4 <= end - start < 3
    assert "No space left on device" in reason and "another process may take it" in reason


def test_by_default_it_exits_with_the_code_that_requeues_the_job(tmp_path):
    code = f"""
import os, time
from pathlib import Path
from aim_lightning.runs import lease
def utime(*_): raise OSError(5, "Input/output error")
lease.os.utime = utime
with lease.Lease(Path({str(tmp_path)!r}, "lease.json"), beat_seconds=0.05, stale_seconds=0.2):
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == TransientError.exit_code == 74 and "Input/output error" in done.stderr


def test_a_lease_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Lease, "_text", full)
    with pytest.raises(TransientError, match=r"lease.json cannot be used .No space left on device"):
        Lease(tmp_path / "lease.json").__enter__()
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_just_created_counts_as_held(tmp_path):
    path = tmp_path / "lease.json"
    path.touch()
    with pytest.raises(UserError), Lease(path):
        pass


def earlier_start(path, starts):
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "77", "starts": starts}))


def test_a_requeued_job_takes_over_from_its_earlier_start_on_another_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    path = tmp_path / "lease.json"
    earlier_start(path, starts=0)
    with Lease(path):
        assert json.loads(path.read_text())["starts"] == 1
    tmp_path.mkdir()  # the lease removes an empty directory
    earlier_start(path, starts=1)  # a second training of the same start
    with pytest.raises(UserError, match="job 77"), Lease(path, patient=False):
        pass


def test_a_patient_lease_waits_for_a_dead_node_and_refuses_a_living_one(tmp_path):
    path = tmp_path / "lease.json"
    other_host(path, age=0)
    start = time.monotonic()
    with Lease(path, beat_seconds=0.1, stale_seconds=1.0, patient=True):
        assert time.monotonic() - start >= 0.9
    tmp_path.mkdir(exist_ok=True)  # the lease removes an empty directory
    beating = f"""
import json, time
from pathlib import Path
for _ in range(100):
    text = json.dumps({{"host": "elsewhere", "pid": 1, "job": "5"}})
    Path({str(path)!r} + ".new").write_text(text)
    Path({str(path)!r} + ".new").rename({str(path)!r})
    time.sleep(0.1)
"""
    process = subprocess.Popen([sys.executable, "-c", beating])
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(UserError, match="job 5"), Lease(path, beat_seconds=0.2, stale_seconds=30, patient=True):
        pass
    process.kill()
    process.wait()


def test_a_process_that_died_while_taking_over_blocks_nobody(tmp_path):
    path = tmp_path / "lease.json"
    other_host(path, age=1000)
    code = f"""
import os
from pathlib import Path
from aim_lightning.runs import lease
lease.write_text = lambda *_: os._exit(0)
lease.Lease(Path({str(path)!r})).__enter__()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list(tmp_path.glob(".lease*"))) == 1 and json.loads(path.read_text())["host"] == "elsewhere"
    with Lease(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert [entry.name for entry in tmp_path.iterdir()] == ["lease.json"]


@pytest.mark.parametrize("_", range(3))
def test_of_many_that_find_a_dead_lease_one_gets_it(tmp_path, _):
    path = tmp_path / "lease.json"
    other_host(path, age=1000)
    code = f"""
import sys, time
from pathlib import Path
from aim_lightning.runs.lease import Lease
from aim_lightning.utils.errors import UserError
Path({str(tmp_path)!r}, "ready-" + sys.argv[1]).touch()
while not Path({str(tmp_path / "go")!r}).exists(): time.sleep(0.001)
try:
    with Lease(Path({str(path)!r})):
        print("held", flush=True)
        time.sleep(1.5)
except UserError:
    print("refused", flush=True)
"""
    commands = [[sys.executable, "-c", code, str(number)] for number in range(6)]
    many = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    while len(list(tmp_path.glob("ready-*"))) < len(many):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    outputs = sorted(process.communicate(timeout=60)[0].strip() for process in many)
    assert outputs == ["held"] + ["refused"] * 5
    assert not list(tmp_path.glob(".lease*"))


def test_a_lost_lease_is_reported_and_the_new_one_stays(tmp_path):
    path, lost = tmp_path / "lease.json", []
    with Lease(path, beat_seconds=0.05, on_lost=lost.append):
        other_host(path, age=0)
        deadline = time.monotonic() + 5
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "taken over by process 1 on elsewhere" in lost[0]
    assert json.loads(path.read_text())["host"] == "elsewhere"
