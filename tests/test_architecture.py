"""Who may import whom (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "aim_lightning"
# A unit may import those before it in this order and itself; cli alone may import everything.
ALLOWED = {
    "utils": set(),
    "config": {"utils"},
    "models": {"utils"},
    "cluster": {"utils"},
    "metrics": {"utils"},
    "data": {"utils"},
    "sampling": {"models", "utils"},
    "checkpoint": {"utils"},
    "runs": {"checkpoint", "utils"},
    "weights": {"checkpoint", "models", "runs", "utils"},
    "pipeline": {"checkpoint", "models", "runs", "sampling", "utils", "weights"},
    "losses": {"models", "utils"},
    "evaluation": {"checkpoint", "config", "data", "metrics", "pipeline", "runs", "sampling", "utils"},
    "modules": {"losses", "metrics", "models", "utils"},
    "callbacks": {
        "checkpoint",
        "cluster",
        "evaluation",
        "metrics",
        "models",
        "modules",
        "pipeline",
        "runs",
        "sampling",
        "utils",
    },
    "cli": {
        "callbacks",
        "checkpoint",
        "cluster",
        "config",
        "data",
        "evaluation",
        "losses",
        "metrics",
        "models",
        "modules",
        "pipeline",
        "runs",
        "sampling",
        "utils",
        "weights",
    },
}
WITHOUT_LIGHTNING = (
    "utils",
    "cluster",
    "config",
    "models",
    "losses",
    "metrics",
    "sampling",
    "checkpoint",
    "runs",
    "weights",
    "pipeline",
    "evaluation",
)
WITHOUT_TORCH = ("cluster", "config")  # `slurm` answers at once, and handlers are there before torch is
ROOT_FILES = {"__init__", "__main__"}


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if unit(path) not in ROOT_FILES]


def test_every_unit_is_listed():
    assert {unit(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_direction(path):
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("aim_lightning.")}
    surplus = ours - ALLOWED[unit(path)] - {unit(path)}
    assert not surplus, f"{unit(path)} must not import {surplus}"
    if unit(path) in WITHOUT_LIGHTNING:
        assert not any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in imports(path))
    if unit(path) in WITHOUT_TORCH:
        assert not any(name.split(".")[0] == "torch" for name in imports(path))


def test_no_two_units_may_import_each_other():
    for name, allowed in ALLOWED.items():
        assert not any(name in ALLOWED[other] for other in allowed)


def test_configs_mirror_the_sections():
    directories = {path.name for path in (PACKAGE.parent / "configs").iterdir() if path.is_dir()}
    assert directories >= {"model", "data", "trainer", "callbacks", "logger"}
    for file in (PACKAGE.parent / "configs").rglob("*.yaml"):
        first = next(line for line in file.read_text().splitlines() if line and not line.startswith("#"))
        assert first == f"{file.parent.name}:", f"{file} must carry its section key"
