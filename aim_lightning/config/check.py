"""Check a composed configuration against the signatures of the classes that it names.

LightningCLI would report the same mistakes, but for the whole configuration at once and over many lines. Here every
value is compared alone, so that an error has one line with the file, the key and the expected type.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NoReturn

from aim_lightning.config import signature
from aim_lightning.config.compose import CLASS_KEYS, ComposedConfig, is_class
from aim_lightning.config.yaml import inline
from aim_lightning.utils.errors import UserError, suggest

Classes = tuple[type, ...]
Provided = Mapping[str, str]
NOTHING: Provided = {}


@dataclass(frozen=True)
class Section:
    """A section of a configuration: a single value, one object, or named objects.

    Args:
        type: type of a single value, e.g. ``str | None``; None if the section is a mapping.
        or_class: True if an object, given by class_path and init_args, may replace the single value.
        named: True if the section maps free names to objects; null switches one off.
        fixed: the only possible class; its options are direct keys of the section.
        base: dotted name of the class that every object must derive from.
        provided: arguments that the framework sets -> the advice that errors give.
        description: for help screens.
        required: True if a command needs the section.
    """

    type: Any = None
    or_class: bool = False
    named: bool = False
    fixed: str | None = None
    base: str | None = None
    provided: Provided = field(default_factory=dict)
    description: str = ""
    required: bool = False


def check(
    config: ComposedConfig, sections: Mapping[str, Section], optional: Collection[str] = (), classes: bool = True
) -> None:
    """Compare every value with the sections of a command and the signatures of their classes.

    Args:
        config: from `compose`.
        sections: every section that the command accepts.
        optional: names of sections that may be missing although they are required.
        classes: False to check scalar sections only, for commands that must not wait for the import of the classes.

    Raises:
        UserError: an unknown section, option or class, a missing argument, or a value of the wrong type. One line with
            the file, the dotted key, the fact, and a similar name where there is one.
    """
    for name in config.values:
        if name not in sections:
            raise UserError(f"{config.origin(name)}: {name} is not a known section{suggest(name, sections)}")
    for name, section in sections.items():
        if section.required and name not in optional and config.values.get(name) is None:
            raise UserError(f"configuration: {name} is missing; set it in a --config file or with --{name}")
    for name, value in config.values.items():
        if sections[name].type or (classes and value is not None):
            _Checker(config).section(name, sections[name], value)


class _Checker:
    """The checks of one configuration; every method raises UserError or returns nothing."""

    def __init__(self, config: ComposedConfig):
        self.config = config

    def section(self, name: str, section: Section, value: Any) -> None:
        bases = (signature.find_class(section.base, name),) if section.base else ()
        if section.type and not (section.or_class and isinstance(value, dict)):
            self._value(value, name, section.type)
        elif section.named:
            for entry, item in self._mapping(value, name, "names, each with a class_path").items():
                if item is not None:
                    hint = suggest(entry, value.keys() - {entry})
                    self._class(item, f"{name}.{entry}", bases, section.provided, hint=hint)
        elif section.fixed:
            cls = signature.find_class(section.fixed, name)
            self._arguments(cls, self._mapping(value, name, "options"), name, section.provided)
        else:
            self._class(value, name, bases, section.provided)

    def _class(
        self, value: Any, key: str, bases: Classes, provided: Provided = NOTHING, complete: bool = True, hint: str = ""
    ) -> None:
        """Check a mapping with class_path; with `complete`, all its required arguments must be present."""
        class_path = self._mapping(value, key, "class_path and init_args").get("class_path")
        if class_path is None:
            self._fail(key, f"has no class_path{hint or '; name the class, or include the file that does'}")
        for stray in [name for name in value if name not in CLASS_KEYS]:
            self._fail(f"{key}.{stray}", f"is next to class_path; put it under {key}.init_args")
        cls = signature.find_class(class_path, f"{self.config.origin(f'{key}.class_path')}: {key}.class_path")
        if bases and inspect.isclass(cls) and not issubclass(cls, bases):
            names = " or ".join(base.__name__ for base in bases)
            self._fail(f"{key}.class_path", f"is {class_path!r}; expected a class derived from {names}")
        arguments = self._mapping(value.get("init_args") or {}, f"{key}.init_args", "arguments")
        # jsonargparse passes dict_kwargs on unchecked.
        provided = dict.fromkeys(value.get("dict_kwargs") or {}, "dict_kwargs sets it") | dict(provided)
        self._arguments(cls, arguments, f"{key}.init_args", provided, complete)

    def _arguments(
        self, cls: Any, values: dict[str, Any], key: str, provided: Provided = NOTHING, complete: bool = True
    ) -> None:
        options = signature.parameters(cls)
        if options is None:  # a class of C, without a signature
            return
        for name, value in values.items():
            if name in provided:
                self._fail(f"{key}.{name}", f"is no option here: {provided[name]}")
            if name not in options:
                hint = suggest(name, options.keys() - provided.keys())
                self._fail(f"{key}.{name}", f"is not an option of {cls.__name__}{hint}")
            self._value(value, f"{key}.{name}", options[name].annotation, options[name].default)
        # After the unknown names: a typo explains why an argument is missing.
        for name, option in options.items():
            if complete and name not in values and name not in provided and signature.is_required(option):
                annotation = option.annotation
                expected = f" ({signature.type_text(annotation)})" if signature.members(annotation) else ""
                where = self.config.origin(key.removesuffix("init_args") + "class_path")
                raise UserError(f"{where}: {key}.{name} is missing; {cls.__name__} needs it{expected}")

    def _value(self, value: Any, key: str, annotation: Any, default: Any = inspect.Parameter.empty) -> None:
        nested, members = signature.dataclass_of(annotation), signature.members(annotation)
        classes = tuple(filter(inspect.isclass, members))
        if value is None and (default is None or NoneType in classes or not members):
            return  # `x: int = None` means int | None
        if is_class(value):
            # A Callable takes a class whose missing arguments come later, e.g. an optimizer without `params`.
            self._class(value, key, classes, complete=bool(classes))
        elif nested and isinstance(value, dict):
            self._arguments(nested, value, key)
        else:
            # Items first: their errors name the item instead of the whole container.
            pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for name, item in pairs:
                if isinstance(item, dict):
                    path = f"{key}.{name}" if isinstance(name, str) else f"{key}[{name}]"
                    self._value(item, path, signature.item_annotation(annotation, name))
            if value is None or not signature.fits(value, annotation):
                self._fail(key, f"is {inline(value)}; expected {signature.type_text(annotation)}")

    def _mapping(self, value: Any, key: str, content: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(key, f"is {inline(value)}; expected a mapping of {content}")
        return value

    def _fail(self, key: str, text: str) -> NoReturn:
        raise UserError(f"{self.config.origin(key)}: {key} {text}")
