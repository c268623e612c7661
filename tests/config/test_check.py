"""Check configurations against the signatures of the classes that they name."""

import copy

import pytest
from conftest import ROOT
from helpers import assert_user_error

from aim_lightning.config import ComposedConfig, compose
from aim_lightning.config.check import Section, check
from aim_lightning.config.signature import suggest
from aim_lightning.config.yaml import read_mapping

SECTIONS = {
    "model": Section(),
    "data": Section(default="toybox.Base"),
    "callbacks": Section(named=True, provided={"owner": ""}),
    "logger": Section(named=True, base="toybox.Base"),
    "trainer": Section(fixed="lightning.pytorch.Trainer", provided={"callbacks": "", "logger": ""}),
    "optimizer": Section(provided={"params": ""}),
    "experiment": Section(str),
    "seed_everything": Section(int | None),
}
CASES = read_mapping(ROOT / "tests/config/configurations.yaml", "configurations.yaml")

SHAPES = '''
from __future__ import annotations
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, List, Literal, Optional, Union

@dataclass(frozen=True)
class Sizes:
    """Sizes.

    Args:
        width: how wide,
            in pixels.
        kind: which one.
    """

    table: ClassVar[dict] = {}
    width: int
    kind: Literal["none", "layer"] = "none"
    levels: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    names: list[str] = field(default_factory=lambda: ["a"])
    hidden: int = field(init=False, default=3)

@dataclasses.dataclass(frozen=True)
class Wider(Sizes):
    extra: float = 0.5
    inner: Sizes | None = None

@dataclass
class Easy:
    depth: int = 2

class Base:
    """Base of all.

    Args:
        root: where (a directory).
        workers: how many.
    """

    def __init__(self, root: Path, workers: "int" = 2, *, shuffle: bool = False, rate: float = 1e-4):
        pass

class Model(Base):
    def __init__(self, network: Sizes, easy: Easy, wide: Optional[Wider] = None, **kwargs: Any):
        """Make it.

        Args:
            network: the sizes.
        """
        super().__init__(network, shuffle=True, **kwargs)

class Free(Base):
    def __init__(self, x: int = None, **kwargs):
        self.options = kwargs

class Child(Model):
    pass

class Things:
    def __init__(self, table: dict[str, int] = {}, many: list[Sizes] = (), make: Callable[[int], Base] = None,
                 part: Base = None, either: Union[int, str, None] = 3, alien: Unheard = 1, anything=None,
                 seq: Sequence[int] = (), scale: float | Tensor = 1.0, precision: _PRECISION = "32",
                 owner: str = "", rows: List = ()):
        pass

class Plain:
    pass

class Bag(dict):
    pass

class Given:
    def __init__(self, base: Base = None):
        pass

Alias = Base
def factory(x: int): ...
'''


@pytest.fixture(scope="module")
def toybox(tmp_path_factory):
    """Put a package `toybox` on the path."""
    root = tmp_path_factory.mktemp("path")
    files = {
        "__init__.py": "from .shapes import *\nfrom toybox.shapes import Model as Renamed\n",
        "shapes.py": SHAPES,
        "sub/__init__.py": "from ..shapes import Base\nimport toybox.shapes as s\nX = s.Free\n",
        "broken.py": "class (\n",
        "needy.py": "import no_such_package\n",
        "other.py": "from . import shapes\nclass Far(shapes.Base): pass\n",
    }
    (root / "toybox" / "sub").mkdir(parents=True)
    for name, text in files.items():
        (root / "toybox" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield root


def config_of(values: dict) -> ComposedConfig:
    """Return a configuration in which every section came from x.yaml."""
    return ComposedConfig(values, dict.fromkeys(values, "x.yaml"))


def error_of(config: ComposedConfig) -> str:
    return str(assert_user_error(".", check, config, SECTIONS))


@pytest.mark.parametrize("values", CASES["good"])
def test_good_configurations_pass_unchanged(toybox, values):
    before = copy.deepcopy(values)
    check(config_of(values), SECTIONS)
    assert values == before


@pytest.mark.parametrize("case", CASES["bad"], ids=lambda case: case["error"])
def test_every_mistake_is_one_line_with_file_and_key(toybox, case):
    assert error_of(config_of(case["config"])) == f"x.yaml: {case['error']}"


def test_missing_required_sections():
    sections = {"model": Section(required=True)}
    match = "^configuration: model is missing; set it in a --config file"
    assert_user_error(match, check, ComposedConfig(), sections)
    check(ComposedConfig(), sections, optional=["model"])


def test_scalar_sections_alone_are_checked_without_imports():
    check(config_of({"model": {"class_path": "no_such_package.Model"}}), SECTIONS, classes=False)
    assert_user_error("experiment is 3; expected str", check, config_of({"experiment": 3}), SECTIONS, classes=False)


def test_messages_name_the_file_or_command_line_that_set_the_value(toybox, tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text("model: {class_path: toybox.Model, init_args: {network: {width: 1}}}\n")
    error = error_of(compose([file], [("model.network.widht", "1")]))
    assert error.startswith("command line: model.init_args.network.widht")
    file.write_text("model: {class_path: toybox.Base}\n")
    assert error_of(compose([file], [("model.workers", "1")])).startswith(f"{file}: model.init_args.root is missing")


def test_abbreviations_are_suggested_too():
    assert suggest("lr", ["weight_decay", "base_learning_rate"]) == "; did you mean base_learning_rate?"
    assert suggest("wd", ["weight_decay", "base_learning_rate"]) == "; did you mean weight_decay?"
    assert suggest("x", ["max_x"]) == suggest("zzz", ["max_x"]) == ""
