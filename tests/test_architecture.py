"""Test the imports between the units of the package (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "aim_lightning"
# A unit may import itself and those named here, which come before it in this order. `cli` may import everything.
ALLOWED = {
    "utils": "",
    "config": "utils",
    "models": "utils",
    "cluster": "utils",
    "metrics": "utils",
    "data": "utils",
    "sampling": "models utils",
    "checkpoint": "utils",
    "runs": "checkpoint utils",
    "weights": "checkpoint models runs utils",
    "pipeline": "checkpoint models runs sampling utils weights",
    "losses": "models utils",
    "evaluation": "checkpoint config data metrics pipeline runs sampling utils",
    "modules": "losses metrics models utils",
    "callbacks": "checkpoint cluster evaluation metrics models modules pipeline runs sampling utils",
}
ALLOWED = {name: set(names.split()) for name, names in ALLOWED.items()}
ALLOWED["cli"] = set(ALLOWED)
WITH_LIGHTNING = {"data", "modules", "callbacks", "cli"}
WITHOUT_TORCH = {"cluster", "config"}  # `slurm` answers immediately, and signal handlers exist before torch does
ROOT_FILES = {"__init__", "__main__"}


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if unit(path) not in ROOT_FILES]


def test_every_unit_is_listed():
    assert {unit(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_direction(path):
    names = [name.split(".") for name in imports(path)]
    imported = {name[1] for name in names if name[0] == "aim_lightning" and name[1:]}
    surplus = imported - ALLOWED[unit(path)] - {unit(path)}
    assert not surplus, f"{unit(path)} must not import {surplus}"
    libraries = {name[0] for name in names}
    assert unit(path) in WITH_LIGHTNING or not libraries & {"lightning", "pytorch_lightning"}
    assert unit(path) not in WITHOUT_TORCH or "torch" not in libraries


def test_no_two_units_may_import_each_other():
    for name, allowed in ALLOWED.items():
        assert not any(name in ALLOWED[other] for other in allowed)


def test_configs_mirror_the_sections():
    directories = {path.name for path in (PACKAGE.parent / "configs").iterdir() if path.is_dir()}
    assert directories >= {"model", "data", "trainer", "callbacks", "logger"}
    for file in (PACKAGE.parent / "configs").rglob("*.yaml"):
        first = next(line for line in file.read_text().splitlines() if line and not line.startswith("#"))
        assert first == f"{file.parent.name}:", f"{file} must carry its section key"
