"""YAML as experiments write it: 1e-4 is a float, no key twice, every error with its line."""

import re
from pathlib import Path
from typing import Any

import yaml

from aim_lightning.utils.errors import UserError

_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INT = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0b[01]+)$")
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """PyYAML's safe loader with our numbers."""


class _Dumper(yaml.SafeDumper):
    """Quotes every string that `_Loader` would read as something else; writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _set_numbers(cls: type) -> None:
    """Replace YAML 1.1's numbers: there 1e-4 is a string, 00:12:00:00 is 43200 and 010 is 8."""
    dropped = {f"tag:yaml.org,2002:{kind}" for kind in ("float", "int", "timestamp")}
    cls.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in dropped]
        for first, resolvers in cls.yaml_implicit_resolvers.items()
    }
    cls.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    cls.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


_set_numbers(_Loader)
_set_numbers(_Dumper)


class YamlProblem(Exception):
    """What is wrong with a YAML text (one line), and in which of its lines."""

    def __init__(self, message: str, line: int):
        super().__init__(message)
        self.line = line


def _check_keys(node: yaml.Node | None, above: tuple[yaml.Node, ...] = ()) -> None:
    """Refuse doubled keys, keys that are no strings, and anchors that contain themselves."""
    if any(node is one for one in above):
        raise YamlProblem("an anchor contains itself", node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, (*above, node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            _check_key(key, seen)
            _check_keys(value, (*above, node))


def _check_key(key: yaml.Node, seen: set[str]) -> None:
    line = key.start_mark.line + 1
    if key.tag == _MERGE:
        return
    if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
        name = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
        raise YamlProblem(f"key {name} is no string; put it in quotes", line)
    if key.value in seen:
        raise YamlProblem(f"key {key.value} stands twice in one mapping; remove one", line)
    seen.add(key.value)


def parse(text: str) -> Any:
    """Value of a YAML text.

    Raises:
        YamlProblem: a syntax error, a doubled key, a key that is no string.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _check_keys(node)
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlProblem(_explain(text, error), mark.line + 1 if mark else 1) from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlProblem(f"not readable YAML ({str(error).splitlines()[0]})", 1) from None
    finally:
        loader.dispose()


def _explain(text: str, error: yaml.MarkedYAMLError) -> str:
    """One line about a syntax error, with the usual cause when there is an interpolation inside brackets."""
    inside = isinstance(error, yaml.parser.ParserError) and re.search(r"[\[{,:]\s*\$\{", text)
    hint = "; inside [] and {} write interpolations in quotes: '${a.b}'" if inside else ""
    return f"not readable YAML ({error.problem or error.context}){hint}"


def read_mapping(path: Path, name: str) -> dict[str, Any]:
    """Mapping in a YAML file; `name` is what errors call the file. An empty file is an empty mapping.

    Raises:
        UserError: the file cannot be read, is no YAML, or its top level is no mapping.
    """
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except YamlProblem as problem:
        raise UserError(f"{name}:{problem.line}: {problem}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{name}: cannot be read ({reason})") from None
    if not isinstance(value, dict | None):
        raise UserError(f"{name}: the top level is {inline(value)}; it must be a mapping of sections")
    return value or {}


def dump(values: Any) -> str:
    """YAML text that `parse` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline(value: Any, limit: int = 60) -> str:
    """A value as one short piece of a sentence: null, true, 'text', [1, 2]."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
