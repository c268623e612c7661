"""Lists the options of a section for help screens."""

import ast
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from aim_lightning.config.annotations import dataclass_of, expected, parse_annotation
from aim_lightning.config.compose import ComposedConfig
from aim_lightning.config.options import Parameter
from aim_lightning.config.sections import Leaf, NamedSection, Section, is_class, source_of
from aim_lightning.config.signature import signature
from aim_lightning.config.source import ClassSource
from aim_lightning.config.yaml import inline


class Option(NamedTuple):
    """One row of a help screen; `value` is the current value, else the default, else 'required'."""

    option: str
    type: str
    value: str
    description: str


def describe(name: str, section: Section, document: ComposedConfig) -> list[Option]:
    """Options of a section as overrides write them (without `init_args`).

    Raises:
        UserError: a class that the document names does not exist.
    """
    value = document.values.get(name)
    if isinstance(section, Leaf) and section.or_class and is_class(value):
        return list(_object(document, name, value, ()))
    if isinstance(section, Leaf):
        current = inline(value) if name in document.values else "required" if section.required else ""
        return [Option(name, expected(parse_annotation(section.annotation)), current, section.description)]
    if isinstance(section, NamedSection):
        entries = value if isinstance(value, dict) else {}
        groups = [_entry(document, f"{name}.{key}", item, section.provided) for key, item in entries.items()]
        return [row for group in groups for row in group]
    if section.fixed:
        return list(_class(document, name, section.fixed, value or {}, section.provided))
    if isinstance(value, dict) and value.get("class_path", section.default):
        return list(_object(document, name, value, section.provided, section.default))
    return [Option(f"{name}.class_path", "class", section.default or "required", section.description)]


def _entry(document: ComposedConfig, key: str, value: Any, provided: Collection[str]) -> Iterator[Option]:
    if is_class(value):
        yield from _object(document, key, value, provided)
    else:
        yield Option(key, "class", inline(value), "switched off" if value is None else "")


def _object(
    document: ComposedConfig, key: str, value: dict[str, Any], provided: Collection[str], default: str | None = None
) -> Iterator[Option]:
    """Rows of one object: its class, then the options of that class."""
    class_path = value.get("class_path", default)
    source = source_of(document, key, class_path)
    yield Option(f"{key}.class_path", "class", class_path, signature(source).summary if source else "")
    yield from _class(document, key, class_path, value.get("init_args") or {}, provided)


def _class(
    document: ComposedConfig, key: str, class_path: str, values: dict[str, Any], provided: Collection[str]
) -> Iterator[Option]:
    source = source_of(document, key, class_path)
    if source:
        yield from _options(document, key, source, values, provided)


def _options(
    document: ComposedConfig, key: str, source: ClassSource, values: dict[str, Any], provided: Collection[str] = ()
) -> Iterator[Option]:
    for name, parameter in signature(source).parameters.items():
        value, option = values.get(name), f"{key}.{name}"
        nested = dataclass_of(parameter.annotation, parameter.module)
        if name in provided:
            continue
        if is_class(value):
            yield from _object(document, option, value, ())
        elif nested and (isinstance(value, dict) or nested.node is not source.node):  # a tree of its own kind
            yield from _options(document, option, nested, value if isinstance(value, dict) else {})
        else:
            yield _row(option, parameter, name in values, value)


def _row(key: str, parameter: Parameter, given: bool, value: Any) -> Option:
    kind = expected(parameter.annotation) if parameter.annotation else "any"
    current = inline(value) if given else _default(parameter.default)
    return Option(key, kind, current, parameter.description)


def _default(text: str | None) -> str:
    if text is None:
        return "required"
    try:
        return inline(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text
