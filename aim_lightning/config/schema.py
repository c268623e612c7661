"""Checks a document against the sections of a command and the signatures of the classes it names."""

import ast
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from aim_lightning.config.annotations import (
    class_of,
    dataclass_of,
    expected,
    fits,
    item_annotation,
    members,
    parse_annotation,
)
from aim_lightning.config.compose import ComposedConfig
from aim_lightning.config.describe import Option, describe
from aim_lightning.config.merge import CLASS_KEYS
from aim_lightning.config.modules import Module, suggest
from aim_lightning.config.options import Parameter, Signature
from aim_lightning.config.sections import ClassSection, Leaf, NamedSection, Section, is_class, source_of
from aim_lightning.config.signature import signature
from aim_lightning.config.yaml import inline
from aim_lightning.utils.errors import UserError

__all__ = ["ClassSection", "Leaf", "NamedSection", "Option", "Section", "check", "describe"]


def check(document: ComposedConfig, sections: dict[str, Section]) -> None:
    """Compare a document with what a command takes, without importing the classes.

    What the source cannot settle (compiled classes, types of no plain values) is left to the later check.

    Args:
        document: from `compose`.
        sections: every section that the command knows.

    Raises:
        UserError: the first thing that is wrong: an unknown section, option or class, a missing argument, a
            value of the wrong type. One line with the file, the dotted key, and what was expected.
    """
    checker = _Checker(document)
    for name in document.values:
        if name not in sections:
            raise UserError(f"{document.origin(name)}: {name} is not a known section{suggest(name, sections)}")
    for name, section in sections.items():
        value = document.values.get(name)
        if value is not None or (name in document.values and isinstance(section, Leaf)):
            checker.section(name, section, value)
        elif not isinstance(section, NamedSection) and section.required:
            raise UserError(f"configuration: {name} is missing; set it in a --config file or with --{name}")


class _Checker:
    """One document's checks; every method raises UserError or returns nothing."""

    def __init__(self, document: ComposedConfig):
        self.document = document

    def section(self, name: str, section: Section, value: Any) -> None:
        if isinstance(section, Leaf) and section.or_class and isinstance(value, dict):
            self._class(value, name)
        elif isinstance(section, Leaf):
            self._value(Parameter(name, None, parse_annotation(section.annotation), None), value, name)
        elif isinstance(section, NamedSection):
            for entry, item in self._mapping(value, name, "names, each with a class_path").items():
                if item is not None:
                    hint = suggest(entry, value.keys() - {entry})
                    self._class(item, f"{name}.{entry}", provided=section.provided, hint=hint)
        elif section.fixed:
            self._mapping(value, name, "options")
            source = source_of(self.document, name, section.fixed)
            if source:
                self._arguments(signature(source), value, name, section.provided)
        else:
            self._class(value, name, section.default, section.provided)

    def _class(
        self,
        value: Any,
        key: str,
        default: str | None = None,
        provided: Collection[str] = (),
        complete: bool = True,
        hint: str = "",
    ) -> None:
        """A mapping with class_path; `complete` = all its required arguments must be there."""
        self._mapping(value, key, "class_path and init_args")
        class_path = value.get("class_path", default)
        if class_path is None:
            self._fail(key, f"has no class_path{hint or '; name the class, or include the file that does'}")
        for stray in value:
            if stray not in CLASS_KEYS:
                self._fail(f"{key}.{stray}", f"stands beside class_path; put it under {key}.init_args")
        source = source_of(self.document, key, class_path)
        init_args = value.get("init_args")
        if init_args is not None:
            self._mapping(init_args, f"{key}.init_args", "arguments")
        if source:
            provided = {*provided, *(value.get("dict_kwargs") or {})}
            self._arguments(signature(source), init_args or {}, f"{key}.init_args", provided, complete)

    def _arguments(
        self,
        options: Signature,
        values: dict[str, Any],
        key: str,
        provided: Collection[str],
        complete: bool = True,
    ) -> None:
        for name, value in values.items():
            parameter = options.parameters.get(name)
            if name in provided:
                why = "is set by the framework itself; remove it"
                if isinstance(provided, Mapping):
                    why = f"is no option here: {provided[name]}"
                self._fail(f"{key}.{name}", why)
            if parameter is None and not options.open:
                hint = suggest(name, options.parameters.keys() - provided)
                self._fail(f"{key}.{name}", f"is not an option of {options.name}{hint}")
            self._value(parameter or Parameter(name, None, None, None), value, f"{key}.{name}")
        for name, parameter in options.parameters.items():
            if complete and name not in values and name not in provided and _needed(parameter):
                kind = f" ({expected(parameter.annotation)})" if parameter.annotation else ""
                where = self.document.origin(key.removesuffix("init_args") + "class_path")
                raise UserError(f"{where}: {key}.{name} is missing; {options.name} needs it{kind}")

    def _value(self, parameter: Parameter, value: Any, key: str) -> None:
        annotation, module = parameter.annotation, parameter.module
        if value is None and parameter.default == "None":  # `x: int = None` means int | None
            return
        if fits(annotation, value, module) is False:
            self._fail(key, f"is {inline(value)}; expected {expected(annotation)}")
        nested = dataclass_of(annotation, module) if isinstance(value, dict) else None
        if is_class(value):
            self._class(value, key, complete=_is_object(annotation, module))
        elif nested:
            self._arguments(signature(nested), value, key, ())
        elif isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for name, item in pairs:
                inner = Parameter("", module, item_annotation(annotation, name), None)
                self._value(inner, item, f"{key}[{name}]" if isinstance(name, int) else f"{key}.{name}")

    def _mapping(self, value: Any, key: str, content: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(key, f"is {inline(value)}; expected a mapping of {content}")
        return value

    def _fail(self, key: str, text: str) -> NoReturn:
        raise UserError(f"{self.document.origin(key)}: {key} {text}")


def _needed(parameter: Parameter) -> bool:
    """Whether an argument must be given: a dataclass that can do with its own defaults need not be."""
    nested = dataclass_of(parameter.annotation, parameter.module) if parameter.required else None
    return any(map(_needed, signature(nested).parameters.values())) if nested else parameter.required


def _is_object(annotation: ast.expr | None, module: Module | None) -> bool:
    """Whether an annotation asks for an object, not for something that makes one from later arguments."""
    return any(class_of(member, module) for member in members(annotation))
