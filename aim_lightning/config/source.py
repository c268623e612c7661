"""Finds the definition of a class in source files, through re-exports and aliases."""

import ast
from typing import NamedTuple

from aim_lightning.config.modules import Module, NotFound, Reference, load_module, suggest


class ClassSource(NamedTuple):
    """A class definition and the module that gives its names their meaning."""

    module: Module
    node: ast.ClassDef


def find_class(class_path: str) -> ClassSource | None:
    """Definition of a class, or None where the source cannot tell.

    Raises:
        NotFound: there is no such module, or no such class in it.
    """
    module_name, _, name = class_path.rpartition(".")
    try:
        module = load_module(module_name)
    except NotFound:
        if _is_attribute(module_name):
            return None
        raise
    return None if module is None else lookup(module, name)


def _is_attribute(module_name: str) -> bool:
    """Whether what looks like a module may be a class or another object inside the module above it."""
    above, _, name = module_name.rpartition(".")
    try:
        module = load_module(above) if above else None
    except NotFound:
        return False
    return module is not None and (module.dynamic or name in module.names)


def lookup(module: Module, name: str, seen: frozenset = frozenset()) -> ClassSource | None:
    """A class by its name in a module, through re-exports and aliases; None where the source cannot tell.

    Raises:
        NotFound: the module certainly has no such name.
    """
    if (module.name, name) in seen:
        return None
    seen |= {(module.name, name)}
    if name not in module.names:
        return _lookup_stars(module, name, seen)
    bound = module.names[name]
    if isinstance(bound, ast.ClassDef):
        return ClassSource(module, bound)
    if isinstance(bound, Reference) and bound.name:
        return _follow(bound.module, bound.name, seen)
    if isinstance(bound, ast.Name | ast.Attribute):
        return lookup_expression(module, bound, seen)
    return None


def _lookup_stars(module: Module, name: str, seen: frozenset) -> ClassSource | None:
    settled = not module.dynamic
    for star in module.stars:
        try:
            target = load_module(star)
            found = lookup(target, name, seen) if target else None
        except NotFound:
            continue
        if found:
            return found
        settled = False  # bound to something else, or the star's own source cannot tell
    if not settled:
        return None
    raise NotFound(f"{module.name} has no class {name}{suggest(name, module.names)}")


def _follow(module_name: str, name: str, seen: frozenset) -> ClassSource | None:
    try:
        module = load_module(module_name)
        return None if module is None else lookup(module, name, seen)
    except NotFound:  # an optional dependency, or a submodule instead of a class
        return None


def lookup_expression(module: Module, expression: ast.expr, seen: frozenset = frozenset()) -> ClassSource | None:
    """Class that `Name` or `package.module.Name` means inside a module; None where the source cannot tell."""
    if isinstance(expression, ast.Subscript):  # Generic[T]
        expression = expression.value
    first, *rest = ast.unparse(expression).split(".")
    if not rest:
        try:
            return lookup(module, first, seen)
        except NotFound:
            return None
    bound = module.names.get(first)
    if not isinstance(bound, Reference):
        return None
    return _follow(".".join(part for part in (*bound, *rest[:-1]) if part), rest[-1], seen)
