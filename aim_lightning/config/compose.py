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
from aim_lightning.utils.errors import UserError

COMMAND_LINE = "command line"
# The keys next to class_path; every other key is an argument of the class.
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
# An absolute reference such as ${data.batch_size}; OmegaConf alone handles relative ones and resolvers.
_REFERENCE = re.compile(r"(?<!\\)\$\{([A-Za-z_][\w.]*)\}")
_CIRCLES = ("Recursive interpolation", "Interpolation to parent node")


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


def compose(files: list[Path], overrides: list[tuple[str, str]], texts: Collection[str] = ()) -> ComposedConfig:
    """Merge configuration files, then overrides, then resolve interpolations.

    Every file's `include:` list comes before the file itself, later files over earlier ones. Mappings merge,
    but a mapping with another class_path replaces the earlier one; lists and scalars replace; null replaces.
    `${data.batch_size}` may refer to any value of the configuration.

    Args:
        files: the --config files in order.
        overrides: (dotted key, YAML text) in order; `init_args` may be omitted from a key.
        texts: keys whose override stays the text that was typed, such as the run name; null is still null.

    Raises:
        UserError: a file cannot be read or parsed, or a value cannot be resolved.
    """
    tree = _Tree()
    for file in files:
        for mapping, name in _layers(Path(file), COMMAND_LINE, ()):
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
        yield from _layers(file.parent / entry, name, (*chain, real))
    yield mapping, name


def _name(file: Path) -> str:
    """Return the path relative to the working directory for files below it, without `..` steps."""
    path = os.path.normpath(file.absolute())
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


class _Tree:
    """The values merged so far, and for every dotted key the file (or "command line") that set it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.leaves: dict[str, Any] = {}

    def merge(self, old: dict[str, Any], new: dict[str, Any], prefix: str, origin: str) -> None:
        """Merge a mapping into an earlier one: mappings merge, everything else replaces."""
        for name, value in new.items():
            key, before = f"{prefix}{name}", old.get(name)
            if isinstance(before, dict) and isinstance(value, dict) and not _other_class(before, value):
                self.merge(before, value, f"{key}.", origin)
                continue
            if isinstance(before, dict) and not isinstance(value, dict):
                self._check_replacement(key, before, value, origin)
            self.origins = {path: file for path, file in self.origins.items() if not path.startswith(f"{key}.")}
            # A copy: an anchor may put one object in two places, and later merges change it in place.
            old[name] = copy.deepcopy(value)
            self._record(key, value, origin)

    def override(self, key: str, value: Any) -> None:
        """Apply one override; missing mappings on the way to the key are created."""
        if not all(key.split(".")):
            raise UserError(f"{COMMAND_LINE}: --{key} is no dotted option; write it like --trainer.max_epochs 2")
        path, node = self._full_path(key), self.values
        for depth, part in enumerate(path[:-1], start=1):
            node = node.get(part)
            if node is None:
                break
            if not isinstance(node, dict):
                way = ".".join(path[:depth])
                fact = f"{way} is {inline(node)} ({self.origins.get(way, COMMAND_LINE)}), not a mapping"
                raise UserError(f"{COMMAND_LINE}: {'.'.join(path)} cannot be set: {fact}; set {way} itself")
        for part in reversed(path):
            value = {part: value}
        self.merge(self.values, value, "", COMMAND_LINE)

    def resolve(self) -> dict[str, Any]:
        """Return the values with every interpolation replaced; references may omit `init_args`."""
        try:
            return OmegaConf.to_container(OmegaConf.create(self._prepare("", self.values)), resolve=True)
        except OmegaConfBaseException as error:
            key, problem = error.full_key or "", str(error).splitlines()[0]
            problem = "the reference leads back to itself" if problem.startswith(_CIRCLES) else problem
            fact = f"{key} is {inline(self.leaves.get(key))}, which cannot be resolved: {problem}"
            raise UserError(f"{self._origin(key)}: {fact}") from None

    def _prepare(self, key: str, value: Any) -> Any:
        """Return a value with `init_args` inserted into every reference that omits it."""
        if isinstance(value, dict):
            return {name: self._prepare(f"{key}.{name}".lstrip("."), item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._prepare(f"{key}[{number}]", item) for number, item in enumerate(value)]
        self.leaves[key] = value
        if value == "???":
            raise UserError(f"{self._origin(key)}: {key} is ??? (to be given); set it in a file or with --{key}")
        return _REFERENCE.sub(lambda match: self._reference(key, match), value) if isinstance(value, str) else value

    def _reference(self, key: str, match: re.Match[str]) -> str:
        """Return a reference with its full path. OmegaConf would report the first key that leads to a wrong one."""
        path, node = self._full_path(match[1]), self.values
        for part in path:
            if isinstance(node, dict) and part not in node:
                raise UserError(f"{self._origin(key)}: {key} is {match.string!r}, but nothing sets {match[1]}")
            node = node[part] if isinstance(node, dict) else None
        return "${" + ".".join(path) + "}"

    def _full_path(self, key: str) -> list[str]:
        """Return the parts of a dotted key, with the `init_args` that it omits: model.lr -> model, init_args, lr."""
        path: list[str] = []
        node: Any = self.values
        for part in key.split("."):
            if isinstance(node, dict) and "class_path" in node and part not in CLASS_KEYS:
                path.append("init_args")
                node = node.get("init_args")
            path.append(part)
            node = node.get(part) if isinstance(node, dict) else None
        return path

    def _record(self, key: str, value: Any, origin: str) -> None:
        self.origins[key] = origin
        if isinstance(value, dict):
            for name, item in value.items():
                self._record(f"{key}.{name}", item, origin)

    def _check_replacement(self, key: str, before: dict[str, Any], value: Any, origin: str) -> None:
        """Allow only null in place of sections, classes and their arguments; deeper mappings are plain values."""
        special = "." not in key or "class_path" in before or key.endswith(".init_args")
        reference = isinstance(value, str) and "${" in value  # may resolve to a mapping
        if special and value is not None and not reference:
            hint = "; to use a file, list it under include:" if isinstance(value, str) else ""
            raise UserError(f"{origin}: {key} is {inline(value)}, but {self.origins[key]} has a mapping there{hint}")

    def _origin(self, key: str) -> str:
        return self.origins.get(key.split("[")[0], "configuration")


def _other_class(before: dict[str, Any], value: dict[str, Any]) -> bool:
    return "class_path" in before and "class_path" in value and before["class_path"] != value["class_path"]
