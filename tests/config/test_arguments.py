"""Splitting a command line."""

from pathlib import Path

import pytest
from helpers import assert_user_error

from aim_lightning.cli.arguments import split

PLAIN = {"experiment", "run"}


def test_files_overrides_and_the_rest_keep_their_order():
    line = "--config a.yaml --model.lr 1e-3 out --config=b.yaml --device cuda:0 --model.lr=2 --experiment demo"
    result = split([*line.split(), "-v"], PLAIN)
    assert result.configs == [Path("a.yaml"), Path("b.yaml")]
    assert result.overrides == [("model.lr", "1e-3"), ("model.lr", "2"), ("experiment", "demo")]
    assert result.rest == ["out", "--device", "cuda:0", "-v"]
    assert not result.help


def test_values_may_start_with_a_minus_sign_or_hold_an_equals_sign():
    result = split(["--model.x", "-1", "--model.y=--z", "--model.env=A=B", "--run="], PLAIN)
    assert result.overrides == [("model.x", "-1"), ("model.y", "--z"), ("model.env", "A=B"), ("run", "")]


def test_a_dot_in_a_value_or_a_positional_makes_no_override():
    result = split(["model.lr", "--ckpt=last.ckpt", "--ckpt", "a.b"], PLAIN)
    assert result.overrides == []
    assert result.rest == ["model.lr", "--ckpt=last.ckpt", "--ckpt", "a.b"]


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help(word):
    result = split(["--config", "a.yaml", word, "--model.x", "1"])
    assert result.help and result.rest == [] and result.overrides == [("model.x", "1")]


def test_everything_after_two_dashes_is_rest():
    assert split(["--", "--model.x", "--help"]).rest == ["--", "--model.x", "--help"]


LINES = ["--model.lr", "--model.lr --model.x 2", "--model.lr --help", "--experiment", "--config", "--config="]


@pytest.mark.parametrize("line", LINES)
def test_a_missing_value_names_the_option(line):
    option = line.split()[0].removesuffix("=")
    assert_user_error(f"command line: {option} ", split, line.split(), PLAIN)
