"""`sample`: choosing classes by name, and the animation."""

import numpy as np
import pytest
from evaluation.small import config, workspace  # noqa: F401
from helpers import assert_user_error
from PIL import Image

from aim_lightning.cli.common_options import choose_classes
from aim_lightning.cli.main import main

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


@pytest.mark.filterwarnings("ignore:.*Fabric.*")
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
