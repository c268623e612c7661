"""Merging files and overrides into one configuration."""

import math
import time
from pathlib import Path

import pytest
from helpers import assert_contains, assert_user_error

from aim_lightning.config.compose import compose
from aim_lightning.config.yaml import dump, parse
from aim_lightning.utils.errors import UserError

MODEL = """\
model:
  class_path: pkg.AiM
  init_args:
    network: {d_model: 64, n_layer: 2}
    learning_rate: 1e-4
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Change to a new working directory, so that errors name files by short relative paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(**files: str) -> list[Path]:
    """Write NAME=text as NAME.yaml (a double underscore is a slash) and return the paths."""
    paths = [Path(name.replace("__", "/") + ".yaml") for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return paths


def values(*overrides: tuple[str, str], **files: str) -> dict:
    return compose(write(**files), list(overrides)).values


def fails(files: list[Path], *overrides: tuple[str, str]) -> str:
    return str(assert_user_error(".", compose, files, list(overrides)))


def test_includes_come_first_then_the_file_then_later_files_then_overrides(directory):
    write(configs__base="a: 1\nb: 1\nc: 1\nd: 1\n", configs__mid="include: [base.yaml]\nb: 2\nc: 2\nd: 2\n")
    first, second = write(experiments__x="include:\n  - ../configs/mid.yaml\nc: 3\nd: 3\n", late="d: 4\ne: 4\n")
    config = compose([first, second], [("e", "5")])
    assert config.values == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    origins = ["configs/base.yaml", "configs/mid.yaml", "experiments/x.yaml", "late.yaml", "command line"]
    assert config.origins == dict(zip("abcde", origins, strict=True))


def test_later_includes_win_and_one_file_may_be_included_twice(directory):
    write(base="x: 0\ny: 0\n", one="include: [base.yaml]\nx: 1\n", two="include: [base.yaml]\ny: 2\n")
    assert values(main="include: [one.yaml, two.yaml]\n") == {"x": 0, "y": 2}


def test_mappings_merge_while_lists_and_scalars_replace(directory):
    files = {"one": MODEL + "steps: [1, 2]\n", "two": "model: {init_args: {network: {d_model: 96}}}\nsteps: [3]\n"}
    result = values(**files)
    assert result["model"]["init_args"] == {"network": {"d_model": 96, "n_layer": 2}, "learning_rate": 1e-4}
    assert result["steps"] == [3]


def test_another_class_replaces_the_mapping_and_the_same_class_merges(directory):
    one = "c: {ema: {class_path: A, init_args: {x: 1}}, top: {class_path: A, init_args: {x: 1}}}\n"
    two = "c: {ema: {class_path: B}, top: {class_path: A, init_args: {y: 2}}}\n"
    config = compose(write(one=one, two=two), [])
    assert config.values["c"]["ema"] == {"class_path": "B"}
    assert config.values["c"]["top"]["init_args"] == {"x": 1, "y": 2}
    assert "c.ema.init_args.x" not in config.origins
    assert config.origins["c.top.init_args.y"] == "two.yaml"


def test_null_switches_off_and_can_be_switched_on_again(directory):
    one = "callbacks: {ema: {class_path: A}, lr: {class_path: L}}\n"
    assert values(one=one, two="callbacks: {ema: null}\n")["callbacks"] == {"ema": None, "lr": {"class_path": "L"}}
    again = {"one": one, "two": "callbacks: {ema: null}\n", "three": "callbacks: {ema: {class_path: B}}\n"}
    assert values(**again)["callbacks"]["ema"] == {"class_path": "B"}


def test_anchors_do_not_share_later_changes(directory):
    assert values(one="a: &x {v: 1}\nb: *x\n", two="a: {v: 2}\n") == {"a": {"v": 2}, "b": {"v": 1}}


NUMBERS = {"1e-4": 1e-4, "2e-3": 2e-3, "1E5": 1e5, "-.5": -0.5, "1.": 1.0, ".inf": math.inf, "3": 3, "-1": -1}
TEXTS = {text: text for text in ("010", "00:12:00:00", "2024-01-01", "16-mixed")}
OTHERS = {"1_000": 1000, "null": None, "": None, "true": True, "[1,2]": [1, 2], "{a: 1}": {"a": 1}, "'3'": "3"}


@pytest.mark.parametrize(("text", "value"), (NUMBERS | TEXTS | OTHERS).items())
def test_scalars_in_files_and_overrides(directory, text, value):
    assert values(("b", text), one=f"a: {text}\n") == {"a": value, "b": value}
    assert parse(dump({"a": value})) == {"a": value}


def test_a_dumped_configuration_reads_back_the_same():
    config = {"a": ["1e-4", 1e-5, "null", "on", "3", "ü", "${x}"], "b": {"c": "10:20", "d": None, "e": {}}}
    assert parse(dump(config)) == config


def test_overrides_may_leave_init_args_out(directory):
    overrides = {"model.learning_rate": "1e-3", "model.network.d_model": "128", "model.init_args.network.n_layer": "3"}
    overrides |= {"callbacks.ema.decay": "0.9", "trainer.max_epochs": "2"}
    config = compose(write(one=MODEL + "callbacks: {ema: {class_path: A}}\n"), overrides.items())
    assert config.values["model"]["init_args"] == {"network": {"d_model": 128, "n_layer": 3}, "learning_rate": 1e-3}
    assert config.values["callbacks"]["ema"] == {"class_path": "A", "init_args": {"decay": 0.9}}
    assert config.values["trainer"] == {"max_epochs": 2}
    assert config.origins["callbacks.ema.init_args.decay"] == "command line"
    assert config.origins["model.init_args.network"] == "one.yaml"


def test_a_new_class_on_the_command_line_keeps_the_arguments_next_to_it(directory):
    for order in (1, -1):
        overrides = [("model.width", "3"), ("model.class_path", "pkg.Other")][::order]
        assert values(*overrides, one=MODEL)["model"] == {"class_path": "pkg.Other", "init_args": {"width": 3}}


def test_texts_are_kept_as_typed():
    config = compose([], [("run", "1e5"), ("experiment", "null"), ("seed", "3")], texts={"run", "experiment"})
    assert config.values == {"run": "1e5", "experiment": None, "seed": 3}


def test_interpolation(directory, monkeypatch):
    monkeypatch.setenv("AIM_DATA", "/d")
    text = """
data: {class_path: D, init_args: {batch: 8, root: '${oc.env:AIM_DATA}/x', log: '${oc.env:NO_,y}'}}
model: {init_args: {batch: '${data.batch}', same: '${data.init_args.root}', all: '${extra}'}}
extra: {k: [1, '${data.batch}']}
literal: '\\${data}'
escaped: '\\${data.batch} and \\${nothing}'
"""
    config = compose(write(one=text), [("more", "${model.init_args.batch}")])
    assert config.values["data"]["init_args"] == {"batch": 8, "root": "/d/x", "log": "y"}
    assert config.values["model"]["init_args"] == {"batch": 8, "same": "/d/x", "all": {"k": [1, 8]}}
    assert config.values["more"] == 8
    assert config.values["literal"] == "${data}"
    assert config.values["escaped"] == "${data.batch} and ${nothing}"
    assert config.origin("model.init_args.all.k") == "one.yaml"


def test_an_override_that_is_not_utf8_is_one_line():
    with pytest.raises(UserError, match="a: not readable YAML"):
        compose([], [("a", "\udcff")])


FILE_ERRORS = [
    ("a: 1\na: 2\n", ["x.yaml:2", "key a", "twice"]),
    ("s:\n  b: 1\n  c: 1\n  b: 2\n", ["x.yaml:4", "key b"]),
    ("s:\n  1: x\n", ["x.yaml:2", "key 1", "quotes"]),
    ("on: x\n", ["x.yaml:1", "key on"]),
    ("? [a]\n: x\n", ["x.yaml:1", "no string"]),
    ("a: [1\nb: 2\n", ["x.yaml:2", "not readable YAML"]),
    ("a: {b: ${c}, d: 1}\n", ["x.yaml:1", "quotes"]),
    ("a: !!python/name:os.system x\n", ["x.yaml:1", "constructor"]),
    ("a: &x {b: *x}\n", ["x.yaml:1", "anchor"]),
    ("- a\n", ["x.yaml", "['a']", "mapping"]),
    ("word\n", ["x.yaml", "'word'", "mapping"]),
    ("include: a.yaml\n", ["x.yaml", "include", "'a.yaml'", "list"]),
    ("include: [1]\n", ["x.yaml", "include", "list"]),
    ("include: [gone.yaml]\n", ["x.yaml", "gone.yaml", "does not exist"]),
    ("include: [directory]\n", ["x.yaml", "directory", "is a directory"]),
    ("model:\n  lr: ???\n", ["x.yaml", "model.lr", "???"]),
    ("a: [1, '???']\n", ["x.yaml", "a[1]", "???"]),
    ("m: {a: '${n.b}'}\nn: {}\n", ["x.yaml", "m.a", "'${n.b}'", "nothing sets n.b"]),
    ("a: '${b}'\nb: '${c}'\n", ["x.yaml", "b is", "nothing sets c"]),
    ("a: '${b}'\nb: '${a}'\n", ["x.yaml", "a is", "leads back to itself"]),
    ("a: {b: '${a}'}\n", ["x.yaml", "a.b", "leads back to itself"]),
    ("a: {b: '${.c}'}\n", ["x.yaml", "a.b", "not found"]),
    ("a: '${oc.env:NO_SUCH_VARIABLE}'\n", ["x.yaml", "a is", "NO_SUCH_VARIABLE"]),
    ("a: '${nope:1}'\n", ["x.yaml", "a is", "nope"]),
    ("a: '${b'\n", ["x.yaml", "a is", "'${b'"]),
]


@pytest.mark.parametrize(("text", "words"), FILE_ERRORS)
def test_errors_in_a_file_are_one_line_with_file_and_key(directory, text, words):
    Path("directory").mkdir()
    assert_contains(fails(write(x=text)), words)


def test_missing_config_file_and_directory(directory):
    assert "command line: --config gone.yaml does not exist; give the path" in fails([Path("gone.yaml")])
    assert "is a directory" in fails([Path()])


def test_unreadable_bytes(directory):
    Path("x.yaml").write_bytes(b"a: \xff\n")
    assert fails([Path("x.yaml")]) == "x.yaml: cannot be read (it is not UTF-8 text)"


def test_an_include_loop_shows_its_chain(directory):
    files = write(a="include: [sub/b.yaml]\n", sub__b="include: [../c.yaml]\n", c="include: [sub/b.yaml]\n")
    assert fails(files[:1]) == "c.yaml: include goes round in a circle: sub/b.yaml -> c.yaml -> sub/b.yaml"


REPLACED_MAPPINGS = [
    ("model: file.yaml\n", ["two.yaml", "model is 'file.yaml'", "one.yaml has a mapping there", "include:"]),
    ("callbacks: [a]\n", ["two.yaml", "callbacks is ['a']"]),
    ("callbacks: {ema: file.yaml}\n", ["two.yaml", "callbacks.ema is 'file.yaml'"]),
    ("model: {init_args: 3}\n", ["two.yaml", "model.init_args is 3"]),
]


@pytest.mark.parametrize(("text", "words"), REPLACED_MAPPINGS)
def test_a_value_where_a_section_or_a_class_was(directory, text, words):
    assert_contains(fails(write(one=MODEL + "callbacks: {ema: {class_path: A}}\n", two=text)), words)


def test_deeper_mappings_are_plain_values(directory):
    result = values(one="trainer: {max_time: {hours: 1}}\n", two="trainer: {max_time: '00:01:00:00'}\n")
    assert result == {"trainer": {"max_time": "00:01:00:00"}}


OVERRIDE_ERRORS = [
    (("model.x", "[1"), ["command line: model.x", "YAML"]),
    (("model.x", "{a: 1, a: 2}"), ["command line: model.x", "twice"]),
    (("model.x", "${nope.y}"), ["command line: model.init_args.x", "nothing sets nope.y"]),
    (("model.x", "???"), ["command line: model.init_args.x", "???"]),
    (("model..x", "1"), ["command line: --model..x", "no dotted option"]),
    (("model", "x.yaml"), ["command line: model is 'x.yaml'"]),
    (("name.x", "1"), ["command line: name.x", "name is 'demo' (x.yaml)"]),
]


@pytest.mark.parametrize(("override", "words"), OVERRIDE_ERRORS)
def test_errors_in_overrides(directory, override, words):
    assert_contains(fails(write(x=MODEL + "name: demo\n"), override), words)


def test_aliases_that_expand_to_billions_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    start = time.process_time()
    with pytest.raises(UserError, match=r"anchors expand to more than 100,000 values"):
        compose([tmp_path / "bomb.yaml"], [])
    assert time.process_time() - start < 1
