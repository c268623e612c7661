"""Shared by all tests: one thread a process (two on two cores slow each other down many times), small makers."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# For `make mutation`: a mutant is killed by any failing example, so that the smallest one is not searched for.
settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate], database=None)
pytest_plugins = ["slurm_fixtures"]
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _start_in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def own_signals():
    """For tests that train in this process, whose handlers would outlive them."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def aim_cli():
    """Runs a real `aim-lightning` process; returns the finished process with its text."""

    def call(*arguments: str, cwd: Path = ROOT, timeout: float = 240) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "aim_lightning", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)

    return call


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI (AIM_CI is set by .ci/run) a skipped test is a failure: .ci/run installs what tests need.

    Tests of a full disk limit the size of files: lifted here, since pytest itself writes to one before fixtures end.
    """
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("AIM_CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
