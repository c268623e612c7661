"""Compares plain values with the text of type annotations; a type that it does not know fits everything."""

import ast
from typing import Any

from aim_lightning.config.modules import Module
from aim_lightning.config.signature import is_dataclass
from aim_lightning.config.source import ClassSource, lookup_expression

_SCALARS = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "Path": (str,),
    "PathLike": (str,),
}
_LISTS = ("list", "List", "tuple", "Tuple", "set", "Set", "frozenset", "Sequence", "Iterable", "Collection")
_MAPPINGS = ("dict", "Dict", "Mapping", "MutableMapping")
_NONE = ast.Constant(None)


def parse_annotation(text: str) -> ast.expr:
    """Expression of an annotation's text."""
    return ast.parse(text, mode="eval").body


def members(annotation: ast.expr | None) -> list[ast.expr]:
    """Alternatives of a union, in order; quotes, Optional and Annotated are undone."""
    if annotation is None:
        return []
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return members(parse_annotation(annotation.value))
        except SyntaxError:
            return [annotation]
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return members(annotation.left) + members(annotation.right)
    name, items = _generic(annotation)
    if name == "Union":
        return [one for item in items for one in members(item)]
    if name == "Optional" and items:
        return [*members(items[0]), _NONE]
    return members(items[0]) if name in ("Annotated", "Final", "InitVar") and items else [annotation]


def dataclass_of(annotation: ast.expr | None, module: Module | None) -> ClassSource | None:
    """The one dataclass among an annotation's alternatives."""
    sources = [class_of(member, module) for member in members(annotation)]
    found = [source for source in sources if source and is_dataclass(source.node)]
    return found[0] if len(found) == 1 else None


def item_annotation(annotation: ast.expr | None, key: int | str) -> ast.expr | None:
    """Annotation of one item (a position or a key) of a list, tuple or mapping; None when unknown."""
    for member in members(annotation):
        name, items = _generic(member)
        if isinstance(key, str) and name in _MAPPINGS and len(items) == 2:
            return items[1]
        if isinstance(key, int) and name in _LISTS and items:
            fixed = name in ("tuple", "Tuple") and not _is_ellipsis(items[-1])
            return items[0] if not fixed else items[min(key, len(items) - 1)]
    return None


def fits(annotation: ast.expr | None, value: Any, module: Module | None) -> bool | None:
    """Whether a value is of a type; None when the annotation's text does not settle it."""
    verdicts = [_fits(member, value, module) for member in members(annotation)]
    if not verdicts or (None in verdicts and True not in verdicts):
        return None
    return True in verdicts


def expected(annotation: ast.expr) -> str:
    """A type in plain words: 'int or null', 'one of none, layer, group', 'list[int]'."""
    words: list[str] = []
    for member in members(annotation):
        name, items = _generic(member)
        if isinstance(member, ast.Constant) and member.value is None:
            words.append("null")
        elif name == "Literal":
            choices = [ast.unparse(item).strip("'\"") for item in items]
            words.append(("one of " if len(choices) > 1 else "") + ", ".join(choices))
        else:
            words.append(ast.unparse(member))
    return " or ".join(dict.fromkeys(words))


def _generic(annotation: ast.expr) -> tuple[str, list[ast.expr]]:
    """('list', [int]) for list[int], typing.List[int] or List['int']; the last part of any other name."""
    if not isinstance(annotation, ast.Subscript):
        return ast.unparse(annotation).rpartition(".")[2], []
    inner = annotation.slice
    return _generic(annotation.value)[0], list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]


def class_of(member: ast.expr, module: Module | None) -> ClassSource | None:
    """Class that one alternative names; None where the source cannot tell."""
    known = module is not None and isinstance(member, ast.Name | ast.Attribute)
    return lookup_expression(module, member) if known else None


def _fits(member: ast.expr, value: Any, module: Module | None) -> bool | None:
    name, items = _generic(member)
    if isinstance(member, ast.Constant) and member.value is None:
        return value is None
    if name == "Literal":
        return _fits_literal(items, value)
    if module and isinstance(member, ast.Name) and isinstance(module.names.get(name), ast.AST):
        # A name of the module's own, whatever it is called: a dataclass takes a mapping, the rest is unknown.
        return _fits_class(member, value, module)
    if name in _SCALARS:
        return isinstance(value, _SCALARS[name]) and (name == "bool" or not isinstance(value, bool))
    if name in _MAPPINGS:
        return _fits_mapping(items, value, module)
    if name in _LISTS:
        return _fits_list(name, items, value, module)
    return _fits_class(member, value, module)


def _fits_class(member: ast.expr, value: Any, module: Module | None) -> bool | None:
    source = class_of(member, module)
    return False if source and is_dataclass(source.node) and not isinstance(value, dict) else None


def _fits_literal(items: list[ast.expr], value: Any) -> bool | None:
    if not all(isinstance(item, ast.Constant) for item in items):
        return None
    return any(type(item.value) is type(value) and item.value == value for item in items)


def _fits_mapping(items: list[ast.expr], value: Any, module: Module | None) -> bool | None:
    if not isinstance(value, dict):
        return False
    return _all([fits(items[1], item, module) for item in value.values()]) if len(items) == 2 else True


def _fits_list(name: str, items: list[ast.expr], value: Any, module: Module | None) -> bool | None:
    if not isinstance(value, list):
        # A string is a Sequence and an Iterable too.
        return None if name in ("Sequence", "Iterable", "Collection") else False
    if not items:
        return True
    kinds = [items[0]] * len(value)
    if name in ("tuple", "Tuple") and not _is_ellipsis(items[-1]):
        kinds = items
    if len(kinds) != len(value):
        return False
    return _all([fits(kind, item, module) for kind, item in zip(kinds, value, strict=True)])


def _is_ellipsis(item: ast.expr) -> bool:
    return isinstance(item, ast.Constant) and item.value is ...


def _all(verdicts: list[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True
