"""How many processes `tokenize` starts without a launcher."""

import sys

import pytest

from aim_lightning.cli.launch import local_processes, place_or_launch
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import RANKS, Place

CPU = {"accelerator": "cpu"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*RANKS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("devices", "count"), [("auto", 1), (-1, 1), (1, 1), (3, 3), ("2", 2)])
def test_a_process_a_device(devices, count):
    assert local_processes({**CPU, "devices": devices}) == count


def test_one_process_needs_no_launch_and_a_launchers_word_counts(monkeypatch):
    assert place_or_launch({**CPU, "devices": 1}) == Place()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place_or_launch({**CPU, "devices": 1}) == Place(1, 4, 0)


@pytest.mark.parametrize(
    ("trainer", "word"),
    [
        ({**CPU, "devices": [0, 1]}, "CUDA_VISIBLE_DEVICES"),
        ({**CPU, "devices": 1, "num_nodes": 2}, "torchrun or srun, or set NODE_RANK"),
    ],
)
def test_what_cannot_be_launched(trainer, word):
    with pytest.raises(UserError, match=word):
        place_or_launch(trainer)


def test_when_one_process_fails_the_launch_fails_with_its_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["aim-lightning", "tokenize", "--config", "nowhere.yaml"])
    assert place_or_launch({**CPU, "devices": 2}) == 2
