"""What kinds of sections a configuration may have."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aim_lightning.config.compose import ComposedConfig
from aim_lightning.config.modules import NotFound
from aim_lightning.config.source import ClassSource, find_class
from aim_lightning.utils.errors import UserError

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


@dataclass(frozen=True)
class Leaf:
    """A single value.

    Args:
        annotation: its type as Python writes it, e.g. ``str | None``.
        description: for help screens.
        required: whether the command cannot do without it.
        or_class: whether an object, by its class_path and init_args, may stand in the value's place.
    """

    annotation: str
    description: str = ""
    required: bool = False
    or_class: bool = False


@dataclass(frozen=True)
class ClassSection:
    """One object: `class_path` and `init_args`.

    Args:
        default: class taken when the section names none; None = the section must name one.
        fixed: the only class; its options then stand directly under the section, without class_path.
        provided: arguments that the framework gives itself; they are no options. A mapping says what to do instead.
        description: for help screens.
        required: whether the command cannot do without it.
    """

    default: str | None = None
    fixed: str | None = None
    provided: Collection[str] = ()
    description: str = ""
    required: bool = False


@dataclass(frozen=True)
class NamedSection:
    """A mapping from free names to objects; null switches one off.

    Args:
        provided: arguments that the framework gives to each of them; they are no options.
        description: for help screens.
    """

    provided: Collection[str] = ()
    description: str = ""


Section = Leaf | ClassSection | NamedSection


def is_class(value: Any) -> bool:
    """Whether a value is a mapping that names a class."""
    return isinstance(value, dict) and "class_path" in value


def source_of(document: ComposedConfig, key: str, class_path: Any) -> ClassSource | None:
    """Definition of the class that a section names; None where its source cannot tell.

    Raises:
        UserError: it is no dotted name, or there is certainly no such module or class.
    """
    where = f"{document.origin(f'{key}.class_path')}: {key}.class_path is {class_path!r}"
    if not isinstance(class_path, str) or not _DOTTED.fullmatch(class_path):
        raise UserError(f"{where}; write the class as package.module.Class")
    try:
        return find_class(class_path)
    except NotFound as problem:
        raise UserError(f"{where}, but {problem}") from None
