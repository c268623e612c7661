"""Finds and parses modules without importing them: importing torch and lightning takes seconds."""

import ast
import difflib
import importlib.util
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple


class NotFound(LookupError):
    """A module or class that certainly does not exist; the message says which."""


class Reference(NamedTuple):
    """What an import binds a name to: a module (name None) or something in it."""

    module: str
    name: str | None


@dataclass(frozen=True)
class Module:
    """A parsed source file.

    Args:
        name: dotted name.
        names: what its top level binds: a class, an import, an assigned expression, or None for the rest.
        stars: modules that it takes everything from.
        dynamic: it may have names that its text does not show.
    """

    name: str
    names: dict[str, ast.AST | Reference | None]
    stars: list[str]
    dynamic: bool


def suggest(name: str, choices: Collection[str]) -> str:
    """'; did you mean X?' or nothing."""
    close = difflib.get_close_matches(name, choices, 1)
    return f"; did you mean {close[0]}?" if close else ""


def load_module(name: str) -> Module | None:
    """Parse a module's source; None when it has none (compiled, built in).

    Raises:
        NotFound: there is no such module.
    """
    file = _locate(name)
    if file is None or file.suffix != ".py":
        return None
    return _parse(name, file, file.stat().st_mtime_ns)


def _locate(name: str) -> Path | None:
    """File of a module. Only the top package is asked of Python's finders: they import every parent."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        raise NotFound(f"there is no package {top} (installed or on PYTHONPATH)")
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    places = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    for depth, part in enumerate(rest, start=1):
        file, places = _step(".".join([top, *rest[:depth]]), part, [Path(place) for place in places or []])
    return file


def _step(name: str, part: str, places: list[Path]) -> tuple[Path | None, list[str] | None]:
    """File of one submodule and, when it is a package, the directories of its own submodules."""
    for place in places:
        if (place / part / "__init__.py").is_file():
            return place / part / "__init__.py", [str(place / part)]
        if (place / f"{part}.py").is_file():
            return place / f"{part}.py", None
        for compiled in [
            *place.glob(f"{part}.*.so"),
            *place.glob(f"{part}.so"),
            *place.glob(f"{part}.*.pyd"),
        ]:
            return compiled, None
    directories = [str(place / part) for place in places if (place / part).is_dir()]
    if directories:
        return None, directories
    siblings = {entry.stem for place in places if place.is_dir() for entry in place.iterdir()}
    raise NotFound(f"there is no module {name}{suggest(part, siblings)}")


@cache
def _parse(name: str, file: Path, changed: int) -> Module | None:
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the import will report it
        return None
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    names: dict[str, ast.AST | Reference | None] = {}
    stars: list[str] = []
    _collect(tree.body, package, names, stars)
    dynamic = "__getattr__" in names or bool(re.search(r"\bglobals\(\)|\bexec\(|sys\.modules\[", text))
    return Module(name, names, stars, dynamic)


def _collect(body: Iterable[ast.stmt], package: str, names: dict, stars: list[str]) -> None:
    """Gather what statements bind, inside `if` and `try` as well."""
    for statement in body:
        for name, value in _bindings(statement, package):
            if name == "*":
                stars.append(value.module)
            elif name not in names or isinstance(names[name], ast.Constant):  # X = None before the real X
                names[name] = value
        for block in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try | ast.With):
                _collect(getattr(statement, block, []), package, names, stars)
        for handler in getattr(statement, "handlers", []):
            _collect(handler.body, package, names, stars)


def _bindings(statement: ast.stmt, package: str) -> list[tuple[str, ast.AST | Reference | None]]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [(statement.name, statement)]
    if isinstance(statement, ast.Import):
        # `import a.b` binds a; `import a.b as c` binds c to a.b.
        tops = [(alias.asname, alias.name if alias.asname else alias.name.split(".")[0]) for alias in statement.names]
        return [(name or target, Reference(target, None)) for name, target in tops]
    if isinstance(statement, ast.ImportFrom):
        source = _absolute(statement, package)
        return [(alias.asname or alias.name, Reference(source, alias.name)) for alias in statement.names]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            return [(targets[0].id, statement.value)]
        return [(node.id, None) for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    """Module that `from ..x import y` means inside a package."""
    if not statement.level:
        return statement.module or ""
    base = package.split(".")[: len(package.split(".")) - statement.level + 1]
    return ".".join([*base, *([statement.module] if statement.module else [])])
