"""Commands that sample: classes by name, the animation, and `model.backend`."""

import numpy as np
import pytest
from evaluation.small import config, workspace  # noqa: F401
from helpers import assert_user_error
from PIL import Image

from aim_lightning.cli.common_options import choose_classes
from aim_lightning.cli.main import main
from aim_lightning.models.aim.backends import choose

pytestmark = pytest.mark.filterwarnings("ignore:.*Fabric.*")
NAMES = ["t-shirt", "ankle boot", "bag"]


def test_names_and_numbers():
    assert choose_classes(None, NAMES) == [0, 1, 2]
    assert choose_classes("Bag, ankle boot,0", NAMES) == [2, 1, 0]


def test_names_with_commas_match_fully_and_by_a_unique_part():
    names = ["tench, Tinca tinca", "crane", "crane, lifting machine", "goldfish"]
    assert choose_classes("Tench,  tinca tinca, goldfish, 1", names) == [0, 3, 1]
    assert choose_classes("tench,lifting machine", names) == [0, 2]
    assert choose_classes("crane, lifting machine, crane", names) == [2, 1]


def test_names_with_commas_without_spaces():
    assert choose_classes("a,b", ["a,b", "c"]) == [0]
    assert choose_classes("c,A, b,0", ["a,b", "c"]) == [1, 0, 0]


@pytest.mark.parametrize("text", ["shoe", "3", "-1", "bag,,", ""])
def test_unknown_classes_name_the_known_ones(text):
    assert_user_error("classes are t-shirt; ankle boot; bag", choose_classes, text, NAMES)


def test_an_animation_of_the_grid_and_a_second_call(workspace, config, tmp_path):  # noqa: F811
    """In several batches; its last frame is the grid. A second call overwrites no image."""
    options = ["--classes", "0,1", "--num", "3", "--animate", "--out", tmp_path, "--sampling.batch_size", "4"]
    command = [str(word) for word in ("sample", "--config", config, *options)]
    assert main(command) == 0
    first = {path: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert len(first) == 2 * 3 + 1
    name = "sampled-step=00000007-cfg1.5-seed0"
    assert main([*command, "--sampling.temperature", "0.5"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2 * len(first) and (tmp_path / f"{name}-2.gif").exists()
    assert all(path.read_bytes() == content for path, content in first.items())
    with Image.open(tmp_path / f"{name}.png") as grid, Image.open(tmp_path / f"{name}.gif") as animation:
        assert animation.size == grid.size and animation.n_frames > 1
        animation.seek(animation.n_frames - 1)
        difference = np.abs(np.asarray(animation.convert("RGB"), int) - np.asarray(grid.convert("RGB"), int))
    assert difference.mean() < 8  # 256 colours


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
def test_a_backend_that_cannot_be_used_samples_nothing(monkeypatch, capsys, workspace, config, command):  # noqa: F811
    monkeypatch.setattr(choose, "missing", lambda: "mamba-ssm is not usable (No module named 'mamba_ssm'); install it")
    assert call(workspace, config, command, "mamba_ssm") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    reason = "mamba-ssm is not usable (No module named 'mamba_ssm'); install it"
    assert line == f"error: backend mamba_ssm cannot be used: {reason}"
    assert not list((workspace / "runs" / "small" / "main").glob("samples/*"))


def test_installed_kernels_cannot_sample_on_a_cpu(monkeypatch, capsys, workspace, config):  # noqa: F811
    monkeypatch.setattr(choose, "missing", lambda: None)
    assert call(workspace, config, "sample", "mamba_ssm") == 2
    assert "the weights are on the CPU, its kernels need an NVIDIA GPU" in capsys.readouterr().err


def test_the_torch_backend_samples(workspace, config):  # noqa: F811
    assert call(workspace, config, "sample", "torch") == 0
