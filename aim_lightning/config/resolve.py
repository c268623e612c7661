"""Interpolation: `${data.batch_size}` and `${oc.env:VAR,default}`, through OmegaConf."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aim_lightning.config.merge import Tree, full_path
from aim_lightning.config.yaml import inline
from aim_lightning.utils.errors import UserError

# An absolute reference such as ${data.batch_size}; relative ones and resolvers are OmegaConf's alone.
_REFERENCE = re.compile(r"(?<!\\)\$\{([A-Za-z_][\w.]*)\}")
_CIRCLES = ("Recursive interpolation", "Interpolation to parent node")


def resolve(tree: Tree) -> dict[str, Any]:
    """The tree's values with every interpolation replaced; references may leave `init_args` out.

    Raises:
        UserError: a value is still ???, refers to nothing, or refers to itself.
    """
    for key, value in _leaves(tree.values, ""):
        if value == "???":
            raise UserError(f"{_origin(tree, key)}: {key} is ??? (to be given); set it in a file or with --{key}")
        if isinstance(value, str):
            _check_references(tree, key, value)
    try:
        config = OmegaConf.create(_written_out(tree.values, tree.values))
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_explain(tree, error)) from None


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{key}[{number}]")
    else:
        yield key, value


def _check_references(tree: Tree, key: str, text: str) -> None:
    """Name the key that holds a wrong reference; OmegaConf would name the first key that leads there."""
    for name in _REFERENCE.findall(text):
        node: Any = tree.values
        for part in full_path(tree.values, name):
            if not isinstance(node, dict):
                break
            if part not in node:
                raise UserError(f"{_origin(tree, key)}: {key} is {text!r}, but nothing sets {name}")
            node = node[part]


def _written_out(value: Any, values: dict[str, Any]) -> Any:
    """The same values with `init_args` put into every reference that left it out."""
    if isinstance(value, dict):
        return {name: _written_out(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [_written_out(item, values) for item in value]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: "${" + ".".join(full_path(values, match[1])) + "}", value)
    return value


def _explain(tree: Tree, error: OmegaConfBaseException) -> str:
    key = error.full_key or ""
    raw = dict(_leaves(tree.values, "")).get(key)
    problem = str(error).splitlines()[0]
    if problem.startswith(_CIRCLES):
        problem = "the reference leads back to itself"
    return f"{_origin(tree, key)}: {key} is {inline(raw)}, which cannot be resolved: {problem}"


def _origin(tree: Tree, key: str) -> str:
    return tree.origins.get(key.split("[")[0], "configuration")
