"""Check configurations against the signatures of the classes that they name."""

import copy
import sys

import pytest
from helpers import assert_user_error

from aim_lightning.config import ComposedConfig, compose
from aim_lightning.config.check import ClassSection, NamedSection, ScalarSection, check
from aim_lightning.config.signature import suggest

SECTIONS = {
    "model": ClassSection(),
    "data": ClassSection(default="toybox.Base"),
    "callbacks": NamedSection(provided={"owner"}),
    "logger": NamedSection(base="toybox.Base"),
    "trainer": ClassSection(fixed="lightning.pytorch.Trainer", provided={"callbacks", "logger"}),
    "optimizer": ClassSection(provided={"params"}),
    "experiment": ScalarSection(str, "Name of the experiment."),
    "seed_everything": ScalarSection(int | None, "Seed."),
}

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

SUB = """
from ..shapes import Base
import toybox.shapes as s
X = s.Free
"""

OTHER = """
from . import shapes
class Far(shapes.Base): pass
"""


@pytest.fixture(scope="module")
def toybox(tmp_path_factory):
    """A package `toybox` on the path."""
    root = tmp_path_factory.mktemp("path")
    (root / "toybox" / "sub").mkdir(parents=True)
    files = {
        "toybox/__init__.py": "from .shapes import *\nfrom toybox.shapes import Model as Renamed\n",
        "toybox/shapes.py": SHAPES,
        "toybox/sub/__init__.py": SUB,
        "toybox/broken.py": "class (\n",
        "toybox/needy.py": "import no_such_package\n",
        "toybox/other.py": OTHER,
    }
    for name, text in files.items():
        (root / name).write_text(text)
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))


def document(**values) -> ComposedConfig:
    """Return a configuration in which every section came from x.yaml."""
    return ComposedConfig(values, dict.fromkeys(values, "x.yaml"))


def instance(name: str, **init_args) -> dict:
    return {"class_path": f"toybox.{name}", "init_args": init_args}


def model(name: str, **init_args) -> ComposedConfig:
    return document(model=instance(name, **init_args))


def fails(doc: ComposedConfig) -> str:
    return str(assert_user_error(".", check, doc, SECTIONS))


SIZES = {"width": 3}
ABBREVIATIONS = {
    "NET.": "ARGS.network.",
    "ARGS.": "model.init_args.",
    "PATH ": "model.class_path is ",
    "SYNTAX": "SyntaxError: invalid syntax",
    "NOT_IMPORTED": "cannot be imported",
    "DERIVED": "expected a class derived from",
    "FRAMEWORK": "is set by the framework itself; remove it",
}


GOOD = [
    model("Base", root="r", workers=1, shuffle=True, rate=1),
    model("shapes.Base", root="r"),
    model("sub.Base", root="r"),
    model("sub.X", x=None),
    model("Alias", root="r"),
    model("Renamed", network=SIZES),
    model("Model", network=SIZES, easy={"depth": 3}, wide={"width": 1, "inner": SIZES}, workers=3, rate=0.5),
    model("Model", network={**SIZES, "kind": "layer", "levels": [1], "pair": [1, 2], "names": []}, wide=None),
    model("Child", network=SIZES),
    model("other.Far", root="r"),
    model("Bag", anything=3),
    model("factory", x=3),
    model("Things", table={"a": 1}, many=[SIZES], either="x", alien="y", anything={"b": [1]}, seq=[1]),
    model("Things", rows=[{"a": 1}]),
    model("Things", either=None, scale="x", precision="bf16", make=instance("Base")),
    model("Things", part=instance("Base", root="r")),
    document(model={"class_path": "toybox.Base", "init_args": {"root": "r"}, "dict_kwargs": {"z": 1}}),
    document(data={"init_args": {"root": "r"}}),
    document(model=None, callbacks={"a": None, "b": {"class_path": "toybox.Things"}}, seed_everything=None),
    document(trainer={"precision": "bf16-mixed", "max_time": {"hours": 1}, "deterministic": "warn"}),
    document(trainer={"devices": "auto", "limit_val_batches": 0.5, "max_epochs": None, "fast_dev_run": True}),
    document(trainer={"plugins": [{"class_path": "lightning.pytorch.plugins.TorchCheckpointIO"}]}),
    document(optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1, "betas": [0.9, 0.95]}}),
]


@pytest.mark.parametrize("good", GOOD)
def test_good_documents_pass_unchanged(toybox, good):
    before = copy.deepcopy(good.values)
    check(good, SECTIONS)
    assert good.values == before


BAD = [
    (document(modle={}), "modle is not a known section; did you mean model?"),
    (model("Base", root="r", wokers=1), "ARGS.wokers is not an option of Base; did you mean workers?"),
    (model("Base"), "ARGS.root is missing; Base needs it (Path)"),
    (model("Base", root=3), "ARGS.root is 3; expected Path"),
    (model("Base", root="r", workers=True), "ARGS.workers is true; expected int"),
    (model("Base", root="r", workers=1.5), "ARGS.workers is 1.5; expected int"),
    (model("Base", root="r", workers=None), "ARGS.workers is null; expected int"),
    (model("Base", root="r", shuffle=1), "ARGS.shuffle is 1; expected bool"),
    (model("Base", root="r", rate="1e-4"), "ARGS.rate is '1e-4'; expected float"),
    (model("Child", network=SIZES, shuffle=True), "ARGS.shuffle is not an option of Child"),
    (model("Model", network=SIZES, wokers=1), "ARGS.wokers is not an option of Model; did you mean workers?"),
    (model("Model", network={}), "NET.width is missing; Sizes needs it (int)"),
    (model("Model"), "ARGS.network is missing; Model needs it (Sizes)"),
    (model("Model", network="tiny"), "ARGS.network is 'tiny'; expected Sizes"),
    (model("Model", network={"width": 1, "widht": 2}), "NET.widht is not an option of Sizes; did you mean width?"),
    (model("Model", network={"width": 1, "hidden": 2}), "NET.hidden is not an option of Sizes"),
    (model("Model", network={"width": 1, "kind": "layr"}), "NET.kind is 'layr'; expected one of none, layer"),
    (model("Model", network={"width": 1, "levels": [1, "x"]}), "NET.levels is [1, 'x']; expected tuple[int, ...]"),
    (model("Model", network={"width": 1, "pair": [1]}), "NET.pair is [1]; expected tuple[int, float]"),
    (model("Model", network={"width": 1, "names": "a"}), "NET.names is 'a'; expected list[str]"),
    (
        model("Model", network=SIZES, wide={**SIZES, "inner": {"width": "x"}}),
        "ARGS.wide.inner.width is 'x'; expected int",
    ),
    (model("Model", network=SIZES, easy=3), "ARGS.easy is 3; expected Easy"),
    (model("Model", network=SIZES, wide=3), "ARGS.wide is 3; expected Wider or null"),
    (model("Plain", x=1), "ARGS.x is not an option of Plain"),
    (model("Free", x="a"), "ARGS.x is 'a'; expected int"),
    (model("other.Far"), "ARGS.root is missing; Far needs it (Path)"),
    (model("Things", table={"a": "b"}), "ARGS.table is {'a': 'b'}; expected dict[str, int]"),
    (model("Things", many=[{"width": "x"}]), "ARGS.many[0].width is 'x'; expected int"),
    (model("Things", either=1.5), "ARGS.either is 1.5; expected int or str or null"),
    (model("Things", part=instance("Base")), "ARGS.part.init_args.root is missing; Base needs it (Path)"),
    (
        model("Things", make=instance("Base", rot=1)),
        "ARGS.make.init_args.rot is not an option of Base; did you mean root?",
    ),
    (model("Bse"), "PATH 'toybox.Bse', but toybox has no class Bse; did you mean Base?"),
    (model("shapes.Bse"), "PATH 'toybox.shapes.Bse', but toybox.shapes has no class Bse; did you mean Base?"),
    (model("shaps.Base"), "PATH 'toybox.shaps.Base', but there is no module toybox.shaps; did you mean shapes?"),
    (model("broken.Base"), "PATH 'toybox.broken.Base', but toybox.broken NOT_IMPORTED (SYNTAX (broken.py, line 1))"),
    (
        model("needy.Base"),
        "PATH 'toybox.needy.Base', but toybox.needy NOT_IMPORTED (No module named 'no_such_package')",
    ),
    (model("Given", base=instance("Plain")), "ARGS.base.class_path is 'toybox.Plain'; DERIVED Base"),
    (document(logger={"a": instance("Plain")}), "logger.a.class_path is 'toybox.Plain'; DERIVED Base"),
    (
        document(trainer={"plugins": [instance("Plain")]}),
        "trainer.plugins[0].class_path is 'toybox.Plain'; DERIVED "
        "Precision or ClusterEnvironment or CheckpointIO or LayerSync",
    ),
    (model("Things", many=["x"]), "ARGS.many is ['x']; expected list[Sizes]"),
    (
        document(model={"class_path": "toybix.Base"}),
        "PATH 'toybix.Base', but there is no package toybix (installed or on PYTHONPATH)",
    ),
    (document(model={"class_path": "Base"}), "PATH 'Base'; write the class as package.module.Class"),
    (document(model={"class_path": 3}), "PATH 3; write the class as package.module.Class"),
    (document(model={"init_args": {}}), "model has no class_path; name the class, or include the file that does"),
    (
        document(model={"class_path": "toybox.Base", "root": "r"}),
        "model.root is next to class_path; put it under model.init_args",
    ),
    (
        document(model={"class_path": "toybox.Base", "init_args": [1]}),
        "model.init_args is [1]; expected a mapping of arguments",
    ),
    (document(model="m.yaml"), "model is 'm.yaml'; expected a mapping of class_path and init_args"),
    (document(callbacks=[1]), "callbacks is [1]; expected a mapping of names, each with a class_path"),
    (
        document(callbacks={"ema": instance("Base"), "emma": {"init_args": {}}}),
        "callbacks.ema.init_args.root is missing; Base needs it (Path)",
    ),
    (
        document(callbacks={"emma": {"init_args": {}}, "ema": None}),
        "callbacks.emma has no class_path; did you mean ema?",
    ),
    (document(callbacks={"t": instance("Things", owner="x")}), "callbacks.t.init_args.owner FRAMEWORK"),
    (document(trainer={"max_epochs": "two"}), "trainer.max_epochs is 'two'; expected int or null"),
    (document(trainer={"max_epoch": 2}), "trainer.max_epoch is not an option of Trainer; did you mean max_epochs?"),
    (document(trainer={"callbacks": []}), "trainer.callbacks FRAMEWORK"),
    (
        document(optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lrr": 1}}),
        "optimizer.init_args.lrr is not an option of AdamW; did you mean lr?",
    ),
    (
        document(model={"class_path": "torch.optim.AdmW"}),
        "PATH 'torch.optim.AdmW', but torch.optim has no class AdmW; did you mean AdamW?",
    ),
    (document(experiment=3), "experiment is 3; expected str"),
    (document(experiment=None), "experiment is null; expected str"),
    (document(seed_everything="x"), "seed_everything is 'x'; expected int or null"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_every_mistake_is_one_line_with_file_and_key(toybox, bad, message):
    for short, text in ABBREVIATIONS.items():
        message = message.replace(short, text)
    assert fails(bad) == f"x.yaml: {message}"


def test_missing_required_sections():
    sections = {"model": ClassSection(required=True)}
    match = "^configuration: model is missing; set it in a --config file"
    assert_user_error(match, check, ComposedConfig(), sections)
    check(ComposedConfig(), sections, optional=["model"])


def test_scalar_sections_alone_are_checked_without_imports():
    check(document(model={"class_path": "no_such_package.Model"}), SECTIONS, classes=False)
    assert_user_error("experiment is 3; expected str", check, document(experiment=3), SECTIONS, classes=False)


def test_messages_name_the_file_or_command_line_that_set_the_value(toybox, tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text("model: {class_path: toybox.Model, init_args: {network: {width: 1}}}\n")
    error = fails(compose([file], [("model.network.widht", "1")]))
    assert error.startswith("command line: model.init_args.network.widht")
    file.write_text("model: {class_path: toybox.Base}\n")
    assert fails(compose([file], [("model.workers", "1")])).startswith(f"{file}: model.init_args.root is missing")


def test_abbreviations_are_suggested_too():
    assert suggest("lr", ["weight_decay", "base_learning_rate"]) == "; did you mean base_learning_rate?"
    assert suggest("wd", ["weight_decay", "base_learning_rate"]) == "; did you mean weight_decay?"
    assert suggest("x", ["max_x"]) == suggest("zzz", ["max_x"]) == ""
