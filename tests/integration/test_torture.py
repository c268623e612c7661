"""Trainings killed 20 times and more, with one process and with two, against undisturbed ones (tests/torture)."""

import json

import pytest
from conftest import start_python

pytestmark = pytest.mark.long
KILLS = ("SIGKILL", "SIGTERM", "SIGUSR1")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Run both scenarios concurrently, one core each; return exit code, output and report by number of ranks."""
    paths = {ranks: tmp_path_factory.mktemp("torture") / "report.json" for ranks in (1, 2)}
    options = ("--faults", 24, "--seed", 5)
    processes = {
        ranks: start_python("-m", "torture", *options, "--ranks", f"[{ranks}]", "--report", path)
        for ranks, path in paths.items()
    }
    outputs = {ranks: process.communicate(timeout=800)[0] for ranks, process in processes.items()}
    return {
        ranks: (process.returncode, outputs[ranks], paths[ranks].exists() and json.loads(paths[ranks].read_text())[0])
        for ranks, process in processes.items()
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_twenty_times_is_the_undisturbed_one(reports, ranks):
    code, output, report = reports[ranks]
    assert report, output[-4000:]
    assert code == 0 and report["surprises"] == []
    hits = report["by kind"]
    assert sum(hits.values()) == report["faults"] == 24
    assert sum(hits[kind] for kind in hits if kind != "hang") >= 20  # a full disk is followed by SIGKILL
    assert all(hits.get(kind, 0) for kind in KILLS) and len(report["by phase"]) >= 6
    assert report["rows lost"] == report["rows doubled"] == report["records unlike the plan"] == 0
    assert report["rows twice in the plan"] == 0
    assert report["final states that differ"] == report["curves that differ"] == [] and report["curves"] >= 5
