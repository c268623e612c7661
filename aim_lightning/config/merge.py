"""Merging mappings while remembering which file set what."""

import copy
from typing import Any

from aim_lightning.config.yaml import inline
from aim_lightning.utils.errors import UserError

COMMAND_LINE = "command line"
# The keys that may stand beside class_path; everything else is an argument of the class.
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


def full_path(values: dict[str, Any], key: str) -> list[str]:
    """Parts of a dotted key, with the `init_args` that it left out: model.lr -> model, init_args, lr."""
    path: list[str] = []
    node: Any = values
    for part in key.split("."):
        if isinstance(node, dict) and "class_path" in node and part not in CLASS_KEYS:
            path.append("init_args")
            node = node.get("init_args")
        path.append(part)
        node = node.get(part) if isinstance(node, dict) else None
    return path


class Tree:
    """Values merged so far, and for every dotted key the file (or "command line") that set it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def merge(self, mapping: dict[str, Any], origin: str) -> None:
        """Lay a mapping over the values: mappings merge, everything else replaces.

        Raises:
            UserError: a value that is no mapping stands where a section or a class was.
        """
        self._merge(self.values, mapping, "", origin)

    def set(self, key: str, value: Any) -> None:
        """Apply one override; mappings on its way appear where there are none.

        Raises:
            UserError: the key is no dotted name, or leads through a value that is no mapping.
        """
        if not all(key.split(".")):
            raise UserError(f"{COMMAND_LINE}: --{key} is no dotted option; write it like --trainer.max_epochs 2")
        path = full_path(self.values, key)
        self._check_way(path)
        for part in reversed(path):
            value = {part: value}
        self.merge(value, COMMAND_LINE)

    def _merge(self, old: dict[str, Any], new: dict[str, Any], prefix: str, origin: str) -> None:
        for name, value in new.items():
            key, before = f"{prefix}{name}", old.get(name)
            if isinstance(before, dict) and isinstance(value, dict) and not _other_class(before, value):
                self._merge(before, value, f"{key}.", origin)
                continue
            if isinstance(before, dict) and not isinstance(value, dict):
                self._check_replacement(key, before, value, origin)
            for gone in [one for one in self.origins if one.startswith(f"{key}.")]:
                del self.origins[gone]
            # A copy: an anchor may put one object in two places, and later merges change it in place.
            old[name] = copy.deepcopy(value)
            self._record(key, value, origin)

    def _record(self, key: str, value: Any, origin: str) -> None:
        self.origins[key] = origin
        if isinstance(value, dict):
            for name, item in value.items():
                self._record(f"{key}.{name}", item, origin)

    def _check_replacement(self, key: str, before: dict[str, Any], value: Any, origin: str) -> None:
        """Sections, classes and their arguments give way to null only; deeper mappings are plain values."""
        special = "." not in key or "class_path" in before or key.endswith(".init_args")
        later = isinstance(value, str) and "${" in value  # may turn out to be a mapping
        if special and value is not None and not later:
            hint = "; to take a file in, list it under include:" if isinstance(value, str) else ""
            raise UserError(f"{origin}: {key} is {inline(value)}, but {self.origins[key]} has a mapping there{hint}")

    def _check_way(self, path: list[str]) -> None:
        node: Any = self.values
        for depth, part in enumerate(path[:-1], start=1):
            node = node.get(part)
            if node is None:
                return
            if not isinstance(node, dict):
                way, key = ".".join(path[:depth]), ".".join(path)
                raise UserError(
                    f"{COMMAND_LINE}: {key} cannot be set: {way} is {inline(node)} "
                    f"({self.origins.get(way, COMMAND_LINE)}), not a mapping; set {way} as a whole"
                )


def _other_class(before: dict[str, Any], value: dict[str, Any]) -> bool:
    return "class_path" in before and "class_path" in value and before["class_path"] != value["class_path"]
