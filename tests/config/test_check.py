"""Check configurations against the signatures of the classes that they name."""

import copy

import pytest
from conftest import ROOT
from helpers import assert_user_error

from aim_lightning.config.check import Section, check
from aim_lightning.config.compose import ComposedConfig, compose
from aim_lightning.config.yaml import read_mapping
from aim_lightning.utils.errors import suggest

SECTIONS = {
    "model": Section(),
    "callbacks": Section(named=True, provided={"owner": "the run sets it"}),
    "logger": Section(named=True, base="toybox.Base"),
    "trainer": Section(fixed="lightning.pytorch.Trainer", provided={"callbacks": "use the section callbacks"}),
    "optimizer": Section(provided={"params": "the model sets it"}),
    "experiment": Section(str),
    "seed_everything": Section(int | None),
}
CASES = read_mapping(ROOT / "tests/config/configurations.yaml", "configurations.yaml")


def config_of(values: dict) -> ComposedConfig:
    """Return a configuration in which every section came from x.yaml."""
    return ComposedConfig(values, dict.fromkeys(values, "x.yaml"))


def error_of(config: ComposedConfig) -> str:
    return str(assert_user_error(".", check, config, SECTIONS))


@pytest.mark.parametrize("values", CASES["good"])
def test_good_configurations_pass_unchanged(values):
    before = copy.deepcopy(values)
    check(config_of(values), SECTIONS)
    assert values == before


@pytest.mark.parametrize("case", CASES["bad"], ids=lambda case: case["error"])
def test_every_mistake_is_one_line_with_file_and_key(case):
    assert error_of(config_of(case["config"])) == f"x.yaml: {case['error']}"


def test_missing_required_sections():
    sections = {"model": Section(required=True)}
    match = "^configuration: model is missing; set it in a --config file"
    assert_user_error(match, check, ComposedConfig(), sections)
    check(ComposedConfig(), sections, optional=["model"])


def test_scalar_sections_alone_are_checked_without_imports():
    check(config_of({"model": {"class_path": "no_such_package.Model"}}), SECTIONS, classes=False)
    assert_user_error("experiment is 3; expected str", check, config_of({"experiment": 3}), SECTIONS, classes=False)


def test_messages_name_the_file_or_command_line_that_set_the_value(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text("model: {class_path: toybox.Model, init_args: {network: {width: 1}}}\n")
    error = error_of(compose([file], [("model.network.widht", "1")]))
    assert error.startswith("command line: model.init_args.network.widht")
    file.write_text("model: {class_path: toybox.Base}\n")
    assert error_of(compose([file], [("model.workers", "1")])).startswith(f"{file}: model.init_args.root is missing")


def test_abbreviations_are_suggested_too():
    assert suggest("lr", ["weight_decay", "base_learning_rate"]) == "; did you mean base_learning_rate?"
    assert suggest("cfg", ["top_k", "cfg_scale"]) == "; did you mean cfg_scale?"
    assert suggest("wd", ["weight_decay", "base_learning_rate"]) == "; did you mean weight_decay?"
    assert suggest("x", ["max_x"]) == suggest("zzz", ["max_x"]) == ""
