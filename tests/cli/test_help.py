"""Help screens: every option with its type, present value and docstring."""

from conftest import ROOT, python

from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.config import SECTIONS, read
from aim_lightning.cli.help import describe
from aim_lightning.config.check import Section
from aim_lightning.config.compose import ComposedConfig

DEMO = ROOT / "experiments" / "demo_aim.yaml"


def options(section, config, kind=None):
    """Return the rows of a section by option."""
    return {row.option: row for row in describe(section, kind or SECTIONS[section], config)}


def test_options_of_a_dataclass():
    kind = Section(fixed="aim_lightning.models.aim.aim_config.AiMConfig")
    rows = options("model", ComposedConfig({"model": {"n_layer": 3}}), kind)
    assert rows["model.d_model"][1:] == ("int", "768", "width of the residual stream.")
    assert rows["model.n_layer"].value == "3"
    assert rows["model.adaln"].type == "one of none, layer, group"
    assert rows["model.adaln"].description.endswith("``none`` = no modulation.")
    assert len(rows) == 17 and all(row.description for row in rows.values())


def test_options_of_a_class_and_of_its_nested_dataclasses():
    rows = options("model", read(Arguments([DEMO], [("model.label_dropout", "0.25")])))
    assert rows["model.class_path"].value == "aim_lightning.modules.aim.AiMModule"
    assert rows["model.class_path"].description
    assert rows["model.network.d_model"][1:3] == ("int", "96")
    assert rows["model.label_dropout"][1:3] == ("float", "0.25")
    assert rows["model.compile"][1:3] == ("bool", "false")
    assert rows["model.init_from"][1:3] == ("str or null", "null")
    assert options("model", ComposedConfig())["model.class_path"].value == "required"
    bare = ComposedConfig({"model": {"class_path": "aim_lightning.modules.aim.AiMModule"}})
    assert options("model", bare)["model.global_batch_size"].value == "required"


def test_options_of_scalar_named_and_fixed_sections():
    config = read(Arguments([DEMO], [("callbacks.more", "null")]))
    assert options("experiment", config)["experiment"].value == "'demo_aim'"
    rows = options("callbacks", config)
    assert rows["callbacks.more"][1:] == ("class", "null", "switched off") and "callbacks.ema.decay" in rows
    logger = options("logger", config)
    assert "logger.tensorboard.class_path" in logger and "logger.tensorboard.save_dir" not in logger
    rows = options("trainer", config)
    assert rows["trainer.max_epochs"].type == "int or null" and rows["trainer.max_epochs"].value == "-1"
    assert "Stop training" in rows["trainer.max_epochs"].description
    assert "trainer.callbacks" not in rows


def test_help_of_one_section(succeed, fail):
    text = succeed("fit", "--config", DEMO, "--help", "data")
    lines = [line for line in text.splitlines() if line.startswith("  --")]
    assert lines and all(line.startswith("  --data.") for line in lines)
    assert "--sampling.cfg_scale [float" in succeed("fit", "--help", "sampling")
    error = "error: command line: modle is not a known section; did you mean model?\n"
    assert fail("fit", "--help", "modle") == error


def test_help_without_a_configuration_imports_nothing_heavy():
    code = (
        "import sys; from aim_lightning.cli.main import main; main(['--help']); main(['fit', '--help']);"
        "print({'torch', 'lightning', 'jsonargparse'} & set(sys.modules))"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "set()"
