"""Help, errors, exit codes and time to answer of `aim-lightning`; mistakes that only training finds."""

import errno
import resource
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from conftest import ROOT
from helpers import assert_contains
from lightning.pytorch.callbacks import EarlyStopping

from aim_lightning.cli.main import main
from aim_lightning.config.yaml import read_mapping
from aim_lightning.utils.errors import TransientError, UserError, disk_mistake

DEMO = "experiments/demo_aim.yaml"
MISTAKES = read_mapping(ROOT / "tests/cli/mistakes.yaml", "mistakes.yaml")
IMPORTS = "import lightning.pytorch, torchmetrics, torchvision"
TIMES_THE_IMPORTS = 1.5  # about 1 when it was measured; a ratio is the same on a slow machine


def processor_seconds() -> float:
    """Return the processor time of all finished child processes; unlike wall time it is the same on a busy machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("command", ["", "fit", "sample", "tokenize", "shards", "dataset"])
def test_help_answers_within_a_second(aim_cli, command):
    start = processor_seconds()
    done = aim_cli(*command.split(), "--help")
    assert done.returncode == 0 and "usage: aim-lightning" in done.stdout
    assert processor_seconds() - start < 1


def test_help_shows_options_with_units_and_present_values(aim_cli):
    text = aim_cli("fit", "--config", DEMO, "--help").stdout
    assert "usage: aim-lightning fit" in text
    assert "--model.network.d_model [int] 96" in text and "width of the residual stream" in text
    assert "--callbacks.ema.decay" in text and "--trainer.max_steps [int] 850" in text


@pytest.mark.parametrize(("words", "texts"), (MISTAKES["arguments"] | MISTAKES["files"]).items())
def test_mistakes_are_one_line_and_leave_nothing_behind(fail, tmp_path, words, texts):
    words = words.replace("DEMO", f"--config {DEMO} --runs_root {tmp_path / 'runs'}")
    assert_contains(fail(*words.split()), texts)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_in_a_configuration_appears_soon(aim_cli):
    start = processor_seconds()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    imported = processor_seconds()
    done = aim_cli("fit", "--config", DEMO, "--model.network.d_modle", "3")
    assert processor_seconds() - imported < TIMES_THE_IMPORTS * (imported - start)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("options", "texts"), MISTAKES["training"].items())
def test_later_mistakes_are_one_line_too(tmp_path, own_signals, capsys, options, texts):
    experiment = ["--config", "experiments/demo_tokenizer.yaml", "--runs_root", str(tmp_path / "runs")]
    assert main(["fit", *experiment, *options.split()]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert_contains(error, texts)
    assert not list((tmp_path / "runs").rglob("*"))


def test_config_prints_a_configuration_that_can_be_used_again(aim_cli, tmp_path):
    done = aim_cli("config", "--config", DEMO, "--model.network.d_model", "64")
    assert done.returncode == 0
    (tmp_path / "saved.yaml").write_text(done.stdout)
    assert aim_cli("config", "--config", tmp_path / "saved.yaml").stdout == done.stdout
    assert "d_model: 64" in done.stdout


@pytest.mark.slow
def test_doctor_reports_which_kernels_are_usable(aim_cli):
    done = aim_cli("doctor")
    assert done.returncode == 0
    plain = "chunked scan in plain PyTorch"
    rows = [f"torch {plain}", f"auto torch: {plain}", "triton not usable: it needs an NVIDIA GPU", "causal-conv1d "]
    assert_contains(" ".join(done.stdout.split()), [*rows, "mamba_ssm mamba-ssm is not usable ("])


def test_an_unknown_metric_of_early_stopping_is_one_line(fail, monkeypatch):
    def stop(argv):
        EarlyStopping("val/nope")._validate_condition_metric({"val/loss": torch.tensor(1.0)})

    monkeypatch.setattr("aim_lightning.cli.main.run", stop)
    error = fail()
    assert error.startswith("error: trainer: Early stopping conditioned on metric `val/nope`") and "val/loss" in error


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aim-lightning {version('aim-lightning')}\n"


def test_too_little_memory_is_one_line(fail, monkeypatch):
    monkeypatch.setattr("aim_lightning.cli.main.run", lambda argv: torch.empty(1 << 60, dtype=torch.uint8))
    assert "error: out of memory (tried to allocate 1152921504606846976 bytes); lower the batch size" in fail()


def test_a_directory_in_place_of_a_file_is_one_line(tmp_path, fail):
    assert f"{tmp_path} cannot be used (Is a directory); choose another path" in fail("table", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_transient_and_denied_access_is_not():
    """Exit code 74 requeues a job, exit code 2 does not."""
    full, closed, other = (OSError(n, "reason", "file") for n in (errno.ENOSPC, errno.EACCES, errno.ENOENT))
    assert type(disk_mistake(full)) is TransientError
    assert "file cannot be used (reason); free disk space" in str(disk_mistake(full))
    assert type(disk_mistake(closed)) is UserError and disk_mistake(other) is None
