"""Check a composed configuration against the signatures of the classes that it names, as jsonargparse reads them.

LightningCLI would report the same mistakes, but for the whole document at once and over many lines. Here every value is
compared alone, so that an error has one line with the file, the key and the expected type.
"""

import copy
import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from aim_lightning.config.compose import CLASS_KEYS, ComposedConfig
from aim_lightning.config.yaml import inline
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import no_collections

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


@dataclass(frozen=True)
class ScalarSection:
    """A section that is a single value.

    Args:
        type: its type, e.g. ``str | None``.
        description: for help screens.
        required: True if a command needs it.
        or_class: True if an object, given by class_path and init_args, may replace the value.
    """

    type: Any
    description: str = ""
    required: bool = False
    or_class: bool = False


@dataclass(frozen=True)
class ClassSection:
    """A section that is one object: `class_path` and `init_args`.

    Args:
        default: class of a section without class_path; None if the section must name one.
        fixed: the only possible class; its options are direct keys of the section.
        base: dotted name of the class that the section's class must derive from.
        provided: arguments that the framework sets; a mapping adds the advice that errors give.
        description: for help screens.
        required: True if a command needs it.
    """

    default: str | None = None
    fixed: str | None = None
    base: str | None = None
    provided: Collection[str] = ()
    description: str = ""
    required: bool = False


@dataclass(frozen=True)
class NamedSection:
    """A section that maps free names to objects; null switches one off.

    Args:
        base: dotted name of the class that every object must derive from.
        provided: arguments that the framework sets for each of them.
        description: for help screens.
    """

    base: str | None = None
    provided: Collection[str] = ()
    description: str = ""
    required = False


Section = ScalarSection | ClassSection | NamedSection


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
        if isinstance(sections[name], ScalarSection) or (classes and value is not None):
            _Checker(config).section(name, sections[name], value)


def suggest(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the most similar name, or an empty text."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def is_class(value: Any) -> bool:
    """Return True for a mapping with a class_path."""
    return isinstance(value, dict) and "class_path" in value


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


class _Checker:
    """The checks of one configuration; every method raises UserError or returns nothing."""

    def __init__(self, config: ComposedConfig):
        self.config = config

    def section(self, name: str, section: Section, value: Any) -> None:
        if isinstance(section, ScalarSection) and section.or_class and isinstance(value, dict):
            self._class(value, name)
        elif isinstance(section, ScalarSection):
            self._value(value, name, section.type)
        elif isinstance(section, NamedSection):
            for entry, item in self._mapping(value, name, "names, each with a class_path").items():
                if item is not None:
                    hint = suggest(entry, value.keys() - {entry})
                    self._class(item, f"{name}.{entry}", section.base, section.provided, hint=hint)
        elif section.fixed:
            self._mapping(value, name, "options")
            self._arguments(find_class(section.fixed, name), value, name, section.provided)
        else:
            default = {"class_path": section.default, **self._mapping(value, name, "class_path and init_args")}
            self._class(default, name, section.base, section.provided)

    def _class(
        self,
        value: Any,
        key: str,
        base: str | tuple[type, ...] | None = None,
        provided: Collection[str] = (),
        complete: bool = True,
        hint: str = "",
    ) -> None:
        """Check a mapping with class_path; with `complete`, all its required arguments must be present."""
        class_path = self._mapping(value, key, "class_path and init_args").get("class_path")
        if class_path is None:
            self._fail(key, f"has no class_path{hint or '; name the class, or include the file that does'}")
        for stray in [name for name in value if name not in CLASS_KEYS]:
            self._fail(f"{key}.{stray}", f"is next to class_path; put it under {key}.init_args")
        where = f"{self.config.origin(f'{key}.class_path')}: {key}.class_path"
        cls = find_class(class_path, where)
        bases = (find_class(base, where),) if isinstance(base, str) else base
        if bases and inspect.isclass(cls) and not issubclass(cls, bases):
            names = " or ".join(base.__name__ for base in bases)
            self._fail(f"{key}.class_path", f"is {class_path!r}; expected a class derived from {names}")
        arguments = self._mapping(value.get("init_args") or {}, f"{key}.init_args", "arguments")
        provided = {*provided, *(value.get("dict_kwargs") or {})}
        self._arguments(cls, arguments, f"{key}.init_args", provided, complete)

    def _arguments(
        self, cls: Any, values: dict[str, Any], key: str, provided: Collection[str] = (), complete: bool = True
    ) -> None:
        options = parameters(cls)
        if options is None:
            return
        for name, value in values.items():
            if name in provided:
                advice = f"is no option here: {provided[name]}" if isinstance(provided, Mapping) else ""
                self._fail(f"{key}.{name}", advice or "is set by the framework itself; remove it")
            if name not in options:
                hint = suggest(name, options.keys() - set(provided))
                self._fail(f"{key}.{name}", f"is not an option of {cls.__name__}{hint}")
            self._value(value, f"{key}.{name}", options[name].annotation, options[name].default)
        for name, option in options.items():
            if complete and name not in values and name not in provided and _is_required(option):
                kind = f" ({type_text(option.annotation)})" if members(option.annotation) else ""
                where = self.config.origin(key.removesuffix("init_args") + "class_path")
                raise UserError(f"{where}: {key}.{name} is missing; {cls.__name__} needs it{kind}")

    def _value(self, value: Any, key: str, annotation: Any, default: Any = inspect.Parameter.empty) -> None:
        nested, classes = dataclass_of(annotation), tuple(filter(inspect.isclass, members(annotation)))
        if value is None and (default is None or NoneType in classes or not members(annotation)):
            return  # `x: int = None` means int | None
        if is_class(value):
            # A Callable takes a class whose missing arguments come later, e.g. an optimizer without `params`.
            self._class(value, key, classes, complete=bool(classes))
        elif nested and isinstance(value, dict):
            self._arguments(nested, value, key)
        else:
            pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for name, item in pairs:
                if isinstance(item, dict):
                    path = f"{key}.{name}" if isinstance(name, str) else f"{key}[{name}]"
                    self._value(item, path, _item_annotation(annotation, name))
            if value is None or not _fits(value, annotation):
                self._fail(key, f"is {inline(value)}; expected {type_text(annotation)}")

    def _mapping(self, value: Any, key: str, content: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._fail(key, f"is {inline(value)}; expected a mapping of {content}")
        return value

    def _fail(self, key: str, text: str) -> NoReturn:
        raise UserError(f"{self.config.origin(key)}: {key} {text}")


def _fits(value: Any, annotation: Any) -> bool:
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


def _item_annotation(annotation: Any, key: int | str) -> Any:
    """Return the annotation of one item of a list, tuple or mapping."""
    container, position = (Mapping, 1) if isinstance(key, str) else (Iterable, 0)
    for member in members(annotation):
        if inspect.isclass(get_origin(member)) and issubclass(get_origin(member), container):
            return get_args(member)[position]
    return inspect.Parameter.empty


def _is_required(option: Any) -> bool:
    """Return True for a parameter without default, except a dataclass that has defaults for everything."""
    if option.default is not inspect.Parameter.empty:
        return False
    nested = dataclass_of(option.annotation)
    return not nested or any(map(_is_required, (parameters(nested) or {}).values()))
