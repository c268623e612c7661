"""Fixtures of all tests, and processes that run Python with one thread: two on two cores slow each other down."""

import os
import resource
import signal
import subprocess
import sys
import unittest.mock
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from PIL import Image

# For `make mutation`: a mutant is killed by any failing example, so that the smallest one is not searched for.
settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate], database=None)
pytest_plugins = ["slurm_fixtures"]
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One configuration per kernel of mamba-ssm: autotuning takes minutes per width, dtype and process.
os.environ.setdefault("MAMBA_DETERMINISTIC", "1")
ROOT = Path(__file__).resolve().parents[1]
PIXEL_LIMIT = Image.MAX_IMAGE_PIXELS  # Pillow's own


def python(*words, cwd: Path = ROOT, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess:
    """Run a Python process that can import the package and the tests, and return it with its texts."""
    options = {"cwd": cwd, "capture_output": True, "text": True, "timeout": timeout}
    return subprocess.run([sys.executable, *map(str, words)], env=_environment(environment), **options)


def start_python(*words, **environment: str) -> subprocess.Popen:
    """Start a Python process as in `python`, in a process group of its own; its stdout contains standard error."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options = {"cwd": ROOT, "env": _environment(environment), "start_new_session": True, **pipes}
    return subprocess.Popen([sys.executable, *map(str, words)], **options)


def _environment(changes: dict[str, str]) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": paths, **changes}


@pytest.fixture(autouse=True, scope="session")
def _temporary_files(tmp_path_factory):
    """Collect what libraries and killed processes leave behind in a directory that pytest removes."""
    # The name is short: a path of a socket has at most 107 characters.
    directory = str(tmp_path_factory.mktemp("t", numbered=False))
    with unittest.mock.patch.dict(os.environ, TMPDIR=directory), unittest.mock.patch("tempfile.tempdir", directory):
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _exact_products_on_a_gpu(request, monkeypatch):
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.fail("no GPU that torch can use; these tests are for a machine that has one")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        # The backend mamba_ssm sets it when it is imported, for the process; here variables end with a test.
        monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")


@pytest.fixture(autouse=True)
def _start_in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def _process_state(monkeypatch):
    """Keep changes of environment, pixel limit and proxy from later tests of the process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXEL_LIMIT)
    monkeypatch.setattr(urllib.request, "_opener", None)
    with unittest.mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout."""
    return ROOT


@pytest.fixture
def own_signals():
    """Restore the signal handlers after a training in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def file_limit():
    """Return the function that limits the size of files in bytes, as a full disk does; None = no limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)


@pytest.fixture(scope="session")
def aim_cli():
    """Return the function that runs `aim-lightning` as a process and returns it with its texts."""
    return partial(python, "-m", "aim_lightning")


@pytest.fixture
def succeed(capsys):
    """Return the function that runs a command in this process, expects success, and returns its standard output."""
    from aim_lightning.cli.main import main

    def call(*words) -> str:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == 0, out + err
        return out

    return call


@pytest.fixture
def fail(capsys):
    """Return the function that runs a command in this process, expects exit code 2, and returns its line of error."""
    from aim_lightning.cli.main import main

    def call(*words) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return call


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Report a skipped test as failed in CI, where .ci/run sets AIM_CI and installs what tests need."""
    # Tests of a full disk limit the size of files, and pytest itself writes to one before fixtures end.
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("AIM_CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
