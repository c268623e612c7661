"""Trainings killed 20 times and more, with one process and with two, against undisturbed ones (tests/torture)."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.long]
KILLS = ("SIGKILL", "SIGTERM", "SIGUSR1")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Both scenarios side by side, a core each."""
    directory = tmp_path_factory.mktemp("torture")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    }
    started = {}
    for ranks in (1, 2):
        report = directory / f"{ranks}.json"
        command = [sys.executable, "-m", "torture", "--faults", "24", "--ranks", str(ranks), "--seed", "5"]
        command += ["--report", str(report)]
        out = (directory / f"{ranks}.log").open("w")
        started[ranks] = report, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    for _, process in started.values():
        process.wait(timeout=800)
    return {
        ranks: (process.returncode, json.loads(report.read_text())[0] if report.exists() else None, directory)
        for ranks, (report, process) in started.items()
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_twenty_times_is_the_undisturbed_one(reports, ranks):
    code, report, directory = reports[ranks]
    assert report, (directory / f"{ranks}.log").read_text()[-4000:]
    assert code == 0 and report["surprises"] == []
    hits = report["by kind"]
    assert sum(hits.values()) == report["faults"] == 24
    assert sum(hits[kind] for kind in hits if kind != "hang") >= 20  # a full disk is followed by SIGKILL
    assert all(hits.get(kind, 0) for kind in KILLS) and len(report["by phase"]) >= 6
    assert report["rows lost"] == report["rows doubled"] == report["records unlike the plan"] == 0
    assert report["rows twice in the plan"] == 0
    assert report["final states that differ"] == report["curves that differ"] == [] and report["curves"] >= 5
