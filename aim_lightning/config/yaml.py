"""YAML as experiments use it: 1e-4 is a float, 010 a text, no key occurs twice, every error has its line."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from aim_lightning.utils.errors import UserError, first_line

_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INT = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0b[01]+)$")
_TAG = "tag:yaml.org,2002:"
MAX_VALUES = 100_000  # an experiment has a few hundred; a few nested aliases can stand for billions


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """PyYAML's safe loader with the numbers of JSON."""


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes every string that `_Loader` would read as something else, and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# YAML 1.1, and with it OmegaConf.load, reads 1e-4 as a string, 00:12:00:00 as 43200 and 010 as 8.
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag[len(_TAG) :] not in ("float", "int", "timestamp")]
        for first, resolvers in _class.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))


class YamlError(Exception):
    """An error in a YAML text: one line, and the number of the line that it is in."""

    def __init__(self, message: str, line: int):
        super().__init__(message)
        self.line = line


def parse(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        YamlError: a syntax error, a duplicate key, or a key that is not a string.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        if _check_node(node, {}) > MAX_VALUES:
            raise YamlError(f"anchors expand to more than {MAX_VALUES:,} values; write fewer aliases", 1)
        return None if node is None else _Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(_explain(text, error), mark.line + 1 if mark else 1) from None
    except UnicodeEncodeError:  # bytes of the command line
        raise YamlError("not readable YAML (it is not UTF-8 text)", 1) from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(f"not readable YAML ({first_line(error)})", 1) from None


def _check_node(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Check the keys of a node and below, and return the number of its values with every alias expanded.

    Args:
        node: of the document.
        sizes: results by the id of a node, each of which is visited once; 0 for those above this one.

    Raises:
        YamlError: a duplicate key, a key that is not a string, or an anchor that contains itself.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise YamlError("an anchor contains itself", node.start_mark.line + 1)
        return sizes[id(node)]
    sizes[id(node)] = 0
    pairs, names = node.value if isinstance(node, yaml.MappingNode) else [], set()
    for key in (key for key, _ in pairs if key.tag != f"{_TAG}merge"):
        line, name = key.start_mark.line + 1, key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
        if key.tag != f"{_TAG}str":
            raise YamlError(f"key {name} is no string; put it in quotes", line)
        if name in names:
            raise YamlError(f"key {name} occurs twice in one mapping; remove one", line)
        names.add(name)
    children = [value for _, value in pairs] or node.value
    sizes[id(node)] = 1 + sum(_check_node(child, sizes) for child in children)
    return sizes[id(node)]


def _explain(text: str, error: yaml.MarkedYAMLError) -> str:
    """Return one line about a syntax error, with the usual cause where an interpolation is inside brackets."""
    inside = isinstance(error, yaml.parser.ParserError) and re.search(r"[\[{,:]\s*\$\{", text)
    hint = "; inside [] and {} write interpolations in quotes: '${a.b}'" if inside else ""
    return f"not readable YAML ({error.problem or error.context}){hint}"


def read_mapping(path: Path, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Args:
        path: the file.
        name: its name in errors.

    Raises:
        UserError: the file cannot be read, is not YAML, or its top level is not a mapping.
    """
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except YamlError as error:
        raise UserError(f"{name}:{error.line}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{name}: cannot be read ({reason})") from None
    if not isinstance(value, dict | None):
        raise UserError(f"{name}: the top level is {inline(value)}; it must be a mapping of sections")
    return value or {}


def dump(values: Any) -> str:
    """Return YAML text that `parse` reads as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline(value: Any, limit: int = 60) -> str:
    """Return a value as a short part of a sentence: null, true, 'text', [1, 2]."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
