"""Merge configuration files and command-line overrides into one plain configuration."""

import copy
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aim_lightning.config.yaml import YamlError, inline, parse, read_mapping
from aim_lightning.utils.errors import UserError, first_line

COMMAND_LINE = "command line"
# The keys next to class_path; every other key is an argument of the class.
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
# An absolute reference such as ${data.batch_size}; OmegaConf alone handles relative ones and resolvers.
_REFERENCE = re.compile(r"(?<!\\)\$\{([A-Za-z_][\w.]*)\}")
_CIRCLES = ("Recursive interpolation", "Interpolation to parent node")
PREFIX = "pkg:"
# The directories configs/ and experiments/: setup.py copies them into wheels.
_WHEEL = Path(__file__).parents[1] / "shipped"
SHIPPED = _WHEEL if _WHEEL.is_dir() else Path(__file__).parents[2]


@dataclass
class ComposedConfig:
    """The merged and resolved configuration.

    Args:
        values: plain mappings, lists and scalars without interpolations.
        origins: dotted key of every mapping and leaf -> the file that set it, or "command line".
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Return the file that set a key, or its nearest enclosing mapping if the key came from an interpolation."""
        key = key.split("[")[0]
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "configuration")


def walk(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of a value and of everything in its mappings; lists are values."""
    yield key, value
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from walk(f"{key}.{name}".lstrip("."), item)


def compose(files: list[Path], overrides: list[tuple[str, str]], texts: Collection[str] = ()) -> ComposedConfig:
    """Merge configuration files, then overrides, then resolve interpolations.

    Every file's `include:` list comes before the file itself, later files over earlier ones. Mappings merge,
    but a mapping with another class_path replaces the earlier one; lists and scalars replace; null replaces.
    `${data.batch_size}` may refer to any value of the configuration.

    Args:
        files: the --config files in order; pkg:demo_aim and pkg:model/aim_b are files that the package ships.
        overrides: (dotted key, YAML text) in order; `init_args` may be omitted from a key.
        texts: keys whose override stays the text that was typed, such as the run name; null is still null.

    Raises:
        UserError: a file cannot be read or parsed, or a value cannot be resolved.
    """
    tree = _Tree()
    # All files come before all overrides: an override may set an option of a class that a later file names.
    for file in files:
        for mapping, name in _layers(_locate(str(file)), COMMAND_LINE, ()):
            tree.merge(tree.values, mapping, "", name)
    # A new class drops the arguments of the old one, so it must not come after --model.x of the same line.
    for key, text in sorted(overrides, key=lambda pair: not pair[0].endswith(".class_path")):
        tree.override(key, text if key in texts and text != "null" else _parse(key, text))
    return ComposedConfig(tree.resolve(), tree.origins)


def _parse(key: str, text: str) -> Any:
    try:
        return parse(text)
    except YamlError as error:
        raise UserError(f"{COMMAND_LINE}: {key}: {error}") from None


def _layers(file: Path, included_by: str, chain: tuple[Path, ...]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the mappings of a file's includes, then its own, each with the name that errors use."""
    name, real = _name(file), file.resolve()
    if real in chain:
        circle = " -> ".join(map(_name, (*chain[chain.index(real) :], real)))
        raise UserError(f"{included_by}: include goes round in a circle: {circle}")
    if not file.is_file():
        fact = "is a directory" if file.is_dir() else "does not exist"
        option = "--config" if included_by == COMMAND_LINE else "include"
        raise UserError(f"{included_by}: {option} {name} {fact}; give the path of a YAML file")
    mapping = read_mapping(file, name)
    include = mapping.pop("include", [])
    if not isinstance(include, list) or not all(isinstance(entry, str) for entry in include):
        raise UserError(f"{name}: include is {inline(include)}; it must be a list of paths, each on a line after '- '")
    for entry in include:
        yield from _layers(_locate(entry, file.parent), name, (*chain, real))
    yield mapping, name


def _locate(entry: str, directory: Path = Path()) -> Path:
    """Return the path of a --config or include entry: pkg:EXPERIMENT, pkg:GROUP/NAME of configs/, or a path."""
    if not entry.startswith(PREFIX):
        return directory / entry
    name = entry.removeprefix(PREFIX)
    path = SHIPPED / ("configs" if "/" in name else "experiments") / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"{entry}: there is no such file; use {PREFIX} with one of {names or 'the experiments'}")
    return path


def _name(file: Path) -> str:
    """Return the path relative to the working directory for files below it, without `..` steps."""
    relative = os.path.relpath(file)
    return os.path.normpath(file.absolute()) if relative.startswith("..") else relative


class _Tree(ComposedConfig):
    """The values merged so far; `origins` follows every change."""

    def merge(self, old: dict[str, Any], new: dict[str, Any], prefix: str, origin: str) -> None:
        """Merge a mapping into an earlier one: mappings merge, everything else replaces."""
        for name, value in new.items():
            key, before = f"{prefix}{name}", old.get(name)
            another_class = is_class(before) and is_class(value) and before["class_path"] != value["class_path"]
            if isinstance(before, dict) and isinstance(value, dict) and not another_class:
                self.merge(before, value, f"{key}.", origin)
                continue
            if isinstance(before, dict) and not isinstance(value, dict):
                self._check_replacement(key, before, value, origin)
            kept = {path: file for path, file in self.origins.items() if not path.startswith(f"{key}.")}
            self.origins = kept | {path: origin for path, _ in walk(key, value)}
            # A copy: an anchor may put one object in two places, and later merges change it in place.
            old[name] = copy.deepcopy(value)

    def _check_replacement(self, key: str, before: dict[str, Any], value: Any, origin: str) -> None:
        """Allow only null in place of sections, classes and their arguments; deeper mappings are plain values."""
        special = "." not in key or "class_path" in before or key.endswith(".init_args")
        reference = isinstance(value, str) and "${" in value  # may resolve to a mapping
        if special and value is not None and not reference:
            hint = "; to use a file, list it under include:" if isinstance(value, str) else ""
            raise UserError(f"{origin}: {key} is {inline(value)}, but {self.origins[key]} has a mapping there{hint}")

    def override(self, key: str, value: Any) -> None:
        """Apply one override; missing mappings on the way to the key are created."""
        if not all(key.split(".")):
            raise UserError(f"{COMMAND_LINE}: --{key} is no dotted option; write it like --trainer.max_epochs 2")
        path, node = self._full_path(key), self.values
        for depth, part in enumerate(path[:-1], start=1):
            if (node := node.get(part)) is None:
                break
            if not isinstance(node, dict):
                parent = ".".join(path[:depth])
                fact = f"{parent} is {inline(node)} ({self.origins.get(parent, COMMAND_LINE)}), not a mapping"
                raise UserError(f"{COMMAND_LINE}: {'.'.join(path)} cannot be set: {fact}; set {parent} itself")
        for part in reversed(path):
            value = {part: value}
        self.merge(self.values, value, "", COMMAND_LINE)

    def resolve(self) -> dict[str, Any]:
        """Return the values with every interpolation replaced; references may omit `init_args`."""
        leaves: dict[str, Any] = {}
        try:
            return OmegaConf.to_container(OmegaConf.create(self._prepare("", self.values, leaves)), resolve=True)
        except OmegaConfBaseException as error:
            key, problem = error.full_key or "", first_line(error)
            problem = "the reference leads back to itself" if problem.startswith(_CIRCLES) else problem
            fact = f"{key} is {inline(leaves.get(key))}, which cannot be resolved: {problem}"
            raise UserError(f"{self.origin(key)}: {fact}") from None

    def _prepare(self, key: str, value: Any, leaves: dict[str, Any]) -> Any:
        """Return a value with `init_args` inserted into every reference that omits it; add its leaves to `leaves`."""
        if isinstance(value, dict):
            return {name: self._prepare(f"{key}.{name}".lstrip("."), item, leaves) for name, item in value.items()}
        if isinstance(value, list):
            return [self._prepare(f"{key}[{number}]", item, leaves) for number, item in enumerate(value)]
        leaves[key] = value
        if value == "???":
            raise UserError(f"{self.origin(key)}: {key} is ??? (to be given); set it in a file or with --{key}")
        return _REFERENCE.sub(lambda match: self._reference(key, match), value) if isinstance(value, str) else value

    def _reference(self, key: str, match: re.Match[str]) -> str:
        """Return a reference with its full path. OmegaConf would report the first key that leads to a wrong one."""
        path, node = self._full_path(match[1]), self.values
        for part in path:
            if isinstance(node, dict) and part not in node:
                raise UserError(f"{self.origin(key)}: {key} is {match.string!r}, but nothing sets {match[1]}")
            node = node[part] if isinstance(node, dict) else None
        return "${" + ".".join(path) + "}"

    def _full_path(self, key: str) -> list[str]:
        """Return the parts of a dotted key, with the `init_args` that it omits: model.lr -> model, init_args, lr."""
        path: list[str] = []
        node: Any = self.values
        for part in key.split("."):
            names = ["init_args", part] if is_class(node) and part not in CLASS_KEYS else [part]
            for name in names:
                node = node.get(name) if isinstance(node, dict) else None
            path += names
        return path


def is_class(value: Any) -> bool:
    """Return True for a mapping with a class_path."""
    return isinstance(value, dict) and "class_path" in value
