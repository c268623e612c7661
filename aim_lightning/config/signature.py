"""Options of a class, read from its source: the parameters of __init__ or the fields of a dataclass."""

import ast
from dataclasses import replace

from aim_lightning.config import docstrings
from aim_lightning.config.options import Parameter, Signature, add_field
from aim_lightning.config.source import ClassSource, lookup_expression

_UNKNOWN = Signature("", {}, open=True)
# Bases without options; the source of some of them is frozen into Python.
_BARE = ("object", "ABC", "Generic", "Protocol")


def signature(source: ClassSource) -> Signature:
    """Options of a class, inherited ones included."""
    found = _signature(source, frozenset()) or Signature("", {}, open=False)
    return replace(found, name=source.node.name, summary=docstrings.summary(ast.get_docstring(source.node)))


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether a class is decorated as a dataclass."""
    for decorator in node.decorator_list:
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        if _name(function) == "dataclass":
            return True
    return False


def _name(expression: ast.expr) -> str:
    """Last part of a dotted name, without the [...] behind it."""
    return ast.unparse(expression).partition("[")[0].rpartition(".")[2]


def _signature(source: ClassSource, seen: frozenset) -> Signature | None:
    """None for a class without any __init__ but object's."""
    node = source.node
    if (source.module.name, node.name) in seen:
        return _UNKNOWN
    seen |= {(source.module.name, node.name)}
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    if functions:
        return _of_function(source, functions[-1], seen)
    if is_dataclass(node):
        return _of_dataclass(source, seen)
    return _UNKNOWN if _made_otherwise(node) else _of_bases(source, seen)


def _made_otherwise(node: ast.ClassDef) -> bool:
    """Whether a class has a __new__, or an __init__ that is assigned."""
    functions = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
    assigned = [ast.unparse(item.targets[0]) for item in node.body if isinstance(item, ast.Assign)]
    return "__new__" in functions or "__init__" in assigned


def _of_bases(source: ClassSource, seen: frozenset) -> Signature | None:
    for base in source.node.bases:
        if _name(base) in _BARE:
            continue
        found = lookup_expression(source.module, base)
        inherited = _signature(found, seen) if found else _UNKNOWN
        if inherited is not None:
            return inherited
    return None


def _of_function(source: ClassSource, function: ast.FunctionDef, seen: frozenset) -> Signature:
    docs = [ast.get_docstring(source.node), ast.get_docstring(function)]
    texts = docstrings.arguments(docs[0]) | docstrings.arguments(docs[1])
    args = function.args
    positional = [*args.posonlyargs, *args.args][1:]
    gap = [None] * (len(positional) - len(args.defaults))
    pairs = [*zip(positional, [*gap, *args.defaults], strict=True)]
    pairs += zip(args.kwonlyargs, args.kw_defaults, strict=True)
    own = {}
    for arg, default in pairs:
        text = default and ast.unparse(default)
        own[arg.arg] = Parameter(arg.arg, source.module, arg.annotation, text, texts.get(arg.arg, ""))
    if args.kwarg is None:
        return Signature("", own, open=False)
    return _with_inherited(source, function, own, texts, seen)


def _with_inherited(
    source: ClassSource,
    function: ast.FunctionDef,
    own: dict[str, Parameter],
    texts: dict[str, str],
    seen: frozenset,
) -> Signature:
    """Add what `super().__init__(**kwargs)` takes; `kwargs` used in any other way may take anything."""
    base = _of_bases(source, seen) or Signature("", {}, open=False)
    calls, uses = _uses(function)
    given = {keyword.arg for call in calls for keyword in call.keywords}
    positional = sum(not isinstance(arg, ast.Starred) for arg in calls[0].args) if calls else 0
    inherited = {
        name: replace(parameter, description=texts.get(name) or parameter.description)
        for name, parameter in list(base.parameters.items())[positional:]
        if name not in given
    }
    passed_on = len(calls) == uses == 1
    return Signature("", inherited | own if passed_on else own, open=base.open or not passed_on)


def _uses(function: ast.FunctionDef) -> tuple[list[ast.Call], int]:
    """Calls of super().__init__ that pass **kwargs on, and how often kwargs is used at all."""
    name = function.args.kwarg.arg
    calls = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "super().__init__"
        and any(word.arg is None and ast.unparse(word.value) == name for word in node.keywords)
    ]
    return calls, sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(function))


def _of_dataclass(source: ClassSource, seen: frozenset) -> Signature:
    fields: dict[str, Parameter] = {}
    is_open = False
    for base in reversed([base for base in source.node.bases if _name(base) not in _BARE]):
        found = lookup_expression(source.module, base)
        inherited = _signature(found, seen) if found else _UNKNOWN
        if inherited is _UNKNOWN or (inherited and inherited.is_dataclass):  # no other base makes fields
            fields |= inherited.parameters
            is_open |= inherited.open
    texts = docstrings.arguments(ast.get_docstring(source.node))
    for item in source.node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            add_field(fields, source.module, item, texts.get(item.target.id, ""))
    return Signature("", fields, is_open, is_dataclass=True)
