"""Files and command-line overrides, merged into one plain document."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aim_lightning.config.merge import COMMAND_LINE, Tree
from aim_lightning.config.resolve import resolve
from aim_lightning.config.yaml import YamlProblem, inline, parse, read_mapping
from aim_lightning.utils.errors import UserError


@dataclass
class ComposedConfig:
    """The resolved configuration.

    Args:
        values: plain mappings, lists and scalars; nothing is left to resolve.
        origins: dotted key of every mapping and leaf -> the file that set it, or "command line".
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Who set a key, or its nearest enclosing mapping when the key itself came from an interpolation."""
        key = key.split("[")[0]
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "configuration")


def compose(files: list[Path], overrides: list[tuple[str, str]], texts: Collection[str] = ()) -> ComposedConfig:
    """Merge configuration files, then overrides, then resolve interpolations.

    Every file's `include:` list comes before the file itself, later files over earlier ones. Mappings merge,
    but a mapping with another class_path replaces the earlier one; lists and scalars replace; null replaces.
    `${data.batch_size}` may stand for any value that the document holds.

    Args:
        files: the --config files in order.
        overrides: (dotted key, YAML text) in order; `init_args` may be left out of a key.
        texts: keys whose override stays the text that was typed, such as a run's name; null is still null.

    Raises:
        UserError: a file cannot be read or understood, or a value cannot be resolved.
    """
    tree = Tree()
    for file in files:
        for mapping, name in _layers(Path(file), COMMAND_LINE, ()):
            tree.merge(mapping, name)
    # A new class drops the arguments of the old one, so it must not come after --model.x of the same line.
    for key, text in sorted(overrides, key=lambda pair: not pair[0].endswith(".class_path")):
        tree.set(key, _value(key, text, texts))
    return ComposedConfig(resolve(tree), tree.origins)


def _value(key: str, text: str, texts: Collection[str]) -> Any:
    if key in texts and text != "null":
        return text
    try:
        return parse(text)
    except YamlProblem as problem:
        raise UserError(f"{COMMAND_LINE}: {key}: {problem}") from None


def _layers(file: Path, wanted_by: str, chain: tuple[Path, ...]) -> Iterator[tuple[dict[str, Any], str]]:
    """Mappings of a file's includes, then its own, each with the name that errors use."""
    name, real = _name(file), file.resolve()
    if real in chain:
        circle = " -> ".join(_name(one) for one in (*chain[chain.index(real) :], real))
        raise UserError(f"{wanted_by}: include goes round in a circle: {circle}")
    if not file.is_file():
        what = "is a directory" if file.is_dir() else "does not exist"
        where = "--config" if wanted_by == COMMAND_LINE else "include"
        raise UserError(f"{wanted_by}: {where} {name} {what}; give the path of a YAML file")
    mapping = read_mapping(file, name)
    for entry in _includes(mapping, name):
        yield from _layers(file.parent / entry, name, (*chain, real))
    yield {key: value for key, value in mapping.items() if key != "include"}, name


def _includes(mapping: dict[str, Any], name: str) -> list[str]:
    include = mapping.get("include", [])
    if not isinstance(include, list) or not all(isinstance(entry, str) for entry in include):
        raise UserError(f"{name}: include is {inline(include)}; it must be a list of paths, one a line after '- '")
    return include


def _name(file: Path) -> str:
    """Path relative to the working directory where it lies below it, without `..` steps."""
    path = os.path.normpath(file.absolute())
    below = os.path.relpath(path)
    return path if below.startswith("..") else below
