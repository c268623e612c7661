"""One training a run directory."""

import json
import os
import subprocess
import sys
import time

import pytest

from aim_lightning.runs.lease import Lease
from aim_lightning.utils.errors import UserError


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
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "77", "heartbeat": time.time() - age}))


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
        first = json.loads(path.read_text())["heartbeat"]
        time.sleep(0.3)
        assert json.loads(path.read_text())["heartbeat"] > first


def test_a_file_that_was_just_created_counts_as_held(tmp_path):
    path = tmp_path / "lease.json"
    path.touch()
    with pytest.raises(UserError), Lease(path):
        pass
