"""Import classes by name, and compare values with their parameters as jsonargparse resolves them."""

import copy
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from aim_lightning.utils.errors import UserError, suggest
from aim_lightning.utils.process import no_collections

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def find_class(class_path: Any, where: str) -> Any:
    """Import a class, or a function that returns an object.

    Args:
        class_path: its dotted name.
        where: file and key, for errors.

    Raises:
        UserError: the name has no dots, does not exist, or its module cannot be imported.
    """
    fact = f"{where} is {class_path!r}"
    if not isinstance(class_path, str) or not _DOTTED.fullmatch(class_path):
        raise UserError(f"{fact}; write the class as package.module.Class")
    module_name, _, name = class_path.rpartition(".")
    try:
        with no_collections():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        parent, _, missing = (error.name or "").rpartition(".")
        if not f"{module_name}.".startswith(f"{error.name}."):  # a module that this one imports
            raise UserError(f"{fact}, but {module_name} cannot be imported ({error})") from error
        if not parent:
            raise UserError(f"{fact}, but there is no package {missing} (installed or on PYTHONPATH)") from None
        paths = getattr(importlib.import_module(parent), "__path__", ())
        hint = suggest(missing, [module.name for module in pkgutil.iter_modules(paths)])
        raise UserError(f"{fact}, but there is no module {error.name}{hint}") from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{fact}, but {module_name} cannot be imported ({reason})") from error
    if not callable(getattr(module, name, None)):
        hint = suggest(name, [key for key, value in vars(module).items() if inspect.isclass(value)])
        raise UserError(f"{fact}, but {module_name} has no class {name}{hint}")
    return getattr(module, name)


def parameters(cls: Any) -> dict[str, Any] | None:
    """Return the parameters of a class by name, including those that its **kwargs pass on; None if it has no signature.

    Each has `name`, `annotation`, `default` (``inspect.Parameter.empty`` where it is required) and `doc`.
    """
    # Private, but the only way to the types and docstrings of single parameters (jsonargparse 4.53).
    from jsonargparse._parameter_resolvers import get_signature_parameters

    try:
        return {parameter.name: parameter for parameter in get_signature_parameters(cls, None, logger=False)}
    except ValueError:  # a class of C or of Python itself
        return None


def members(annotation: Any) -> list[Any]:
    """Return the alternatives of a union in order, without Annotated; nothing for a missing annotation."""
    if get_origin(annotation) in (Union, UnionType):
        return [member for item in get_args(annotation) for member in members(item)]
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    return [] if annotation in (inspect.Parameter.empty, Any) else [annotation]


def dataclass_of(annotation: Any) -> type | None:
    """Return the dataclass among the alternatives of an annotation, if there is exactly one."""
    nested = [member for member in members(annotation) if dataclasses.is_dataclass(member)]
    return nested[0] if len(nested) == 1 else None


def type_text(annotation: Any) -> str:
    """Return a type in plain words: 'int or null', 'one of none, layer, group', 'list[int]'."""
    words: list[str] = []
    for member in members(annotation):
        if member is NoneType:
            words.append("null")
        elif get_origin(member) is Literal:
            choices = [str(choice) for choice in get_args(member)]
            words.append(("one of " if len(choices) > 1 else "") + ", ".join(choices))
        elif inspect.isclass(member) and not get_args(member):
            words.append(member.__name__)
        else:
            words.append(re.sub(r"(?:\w+\.)+(\w+)", r"\1", str(member)))
    return " or ".join(dict.fromkeys(words)) or "any"


def fits(value: Any, annotation: Any) -> bool:
    """Return True if jsonargparse accepts a plain value for a type; also for types that it cannot check."""
    from jsonargparse import ArgumentError, ArgumentParser

    if all(map(dataclasses.is_dataclass, members(annotation))):  # jsonargparse accepts 3 where all fields have defaults
        return isinstance(value, dict) or not members(annotation)
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=annotation)
    except ValueError:  # a name that cannot be resolved
        return True
    try:
        # A copy: jsonargparse replaces classes in lists by its own namespaces, in place.
        parsed = parser.parse_object({"value": copy.deepcopy(value)})["value"]
    except ArgumentError:
        return False
    # jsonargparse reads numbers from strings; in YAML, quotes mean a string.
    return str in members(annotation) or not (isinstance(value, str) and isinstance(parsed, int | float))


def item_annotation(annotation: Any, key: int | str) -> Any:
    """Return the annotation of one item of a list, tuple or mapping."""
    container, position = (Mapping, 1) if isinstance(key, str) else (Iterable, 0)
    for member in members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if inspect.isclass(origin) and issubclass(origin, container) and len(arguments) > position:
            return arguments[position]
    return inspect.Parameter.empty


def is_required(option: Any) -> bool:
    """Return True for a parameter without default, except a dataclass that has defaults for everything."""
    if option.default is not inspect.Parameter.empty:
        return False
    nested = dataclass_of(option.annotation)
    return not nested or any(map(is_required, (parameters(nested) or {}).values()))
