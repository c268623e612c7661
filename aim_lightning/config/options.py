"""What an option is, and how dataclass fields become options."""

import ast
from dataclasses import dataclass

from aim_lightning.config.modules import Module


@dataclass(frozen=True)
class Parameter:
    """One option.

    Args:
        name: its name.
        module: where the names in the annotation mean something; None for an annotation of ours.
        annotation: its type, None when it has none.
        default: text of its default, None when it must be given.
        description: from the docstring, on one line.
    """

    name: str
    module: Module | None
    annotation: ast.expr | None
    default: str | None
    description: str = ""

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is None


@dataclass(frozen=True)
class Signature:
    """Options of a class.

    Args:
        name: the class's name.
        parameters: its options by name.
        open: it takes, or may take, options that are not listed.
        is_dataclass: its options stand in a plain mapping.
        summary: first line of its docstring.
    """

    name: str
    parameters: dict[str, Parameter]
    open: bool
    is_dataclass: bool = False
    summary: str = ""


def add_field(fields: dict[str, Parameter], module: Module, item: ast.AnnAssign, text: str) -> None:
    """Add the option that one line of a dataclass body makes, if it makes one."""
    kind = ast.unparse(item.annotation).strip("'\"")
    words = _field_words(item.value)
    made_elsewhere = words is not None and ast.unparse(words.get("init", ast.Constant(True))) == "False"
    if "ClassVar" in kind or kind.endswith("KW_ONLY") or made_elsewhere:
        return
    if words is None:
        default = None if item.value is None else ast.unparse(item.value)
    elif "default" in words:
        default = ast.unparse(words["default"])
    else:
        default = _factory(words.get("default_factory"))
    fields[item.target.id] = Parameter(item.target.id, module, item.annotation, default, text)


def _field_words(value: ast.expr | None) -> dict[str | None, ast.expr] | None:
    """Keywords of `field(...)`; None for any other value."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field":
        return {word.arg: word.value for word in value.keywords}
    return None


def _factory(function: ast.expr | None) -> str | None:
    if function is None:
        return None
    return ast.unparse(function.body) if isinstance(function, ast.Lambda) else f"{ast.unparse(function)}()"
