"""`model.backend` holds in every command that draws, not in training alone."""

import pytest
from evaluation.small import config, workspace  # noqa: F401

from aim_lightning.cli.main import main
from aim_lightning.models.aim.backends import choose

pytestmark = pytest.mark.filterwarnings("ignore:.*Fabric.*")
COMMANDS = {
    "sample": [],
    "evaluate": ["--num", "4"],
    "sweep": ["--num", "4", "--grid", "cfg_scale=1,2"],
    "follow": ["--num", "4"],
    "reproduce": ["--num", "4", "--preset", "AiM-B", "--reference", "x.npz", "--weights", "published"],
}


def call(workspace, config, command, backend) -> int:  # noqa: F811
    options = [str(workspace / word) if word == "published" else word for word in COMMANDS[command]]
    if command != "sample":
        options += ["--cache", str(workspace / "cache")]
    return main([command, "--config", str(config), *options, "--model.init_args.backend", backend])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_backend_that_cannot_be_had_draws_nothing(monkeypatch, capsys, workspace, config, command):  # noqa: F811
    monkeypatch.setattr(choose, "missing", lambda: "mamba-ssm is not usable (No module named 'mamba_ssm'); install it")
    assert call(workspace, config, command, "mamba_ssm") == 2
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: backend mamba_ssm cannot be used: mamba-ssm is not usable (No module named 'mamba_ssm'); install it"
    ]
    assert not list((workspace / "runs" / "small" / "main").glob("samples/*"))


def test_kernels_that_are_there_cannot_draw_on_a_cpu(monkeypatch, capsys, workspace, config):  # noqa: F811
    monkeypatch.setattr(choose, "missing", lambda: None)
    assert call(workspace, config, "sample", "mamba_ssm") == 2
    assert "the weights are on the CPU, its kernels need an NVIDIA GPU" in capsys.readouterr().err


def test_torch_draws(workspace, config):  # noqa: F811
    assert call(workspace, config, "sample", "torch") == 0
