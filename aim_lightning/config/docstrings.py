"""Reads google-style docstrings: the first line and the `Args:` block."""

import re
from inspect import cleandoc

_ENTRY = re.compile(r"^\**(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


def summary(docstring: str | None) -> str:
    """First line of a docstring, or ''."""
    return cleandoc(docstring).partition("\n")[0] if docstring else ""


def arguments(docstring: str | None) -> dict[str, str]:
    """Description of each argument, the first paragraph on one line."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for indent, line in _block(cleandoc(docstring or "").splitlines()):
        entry = _ENTRY.match(line) if indent == 0 else None
        if entry:
            current = found[entry[1]] = [entry[2]]
        elif not line:
            current = []  # later paragraphs belong to nobody
        else:
            current.append(line)
    return {name: " ".join(lines).strip() for name, lines in found.items()}


def _block(lines: list[str]) -> list[tuple[int, str]]:
    """Lines of the `Args:` block as (indentation beyond the entries', text)."""
    starts = [number for number, line in enumerate(lines) if re.fullmatch(r"(Args|Arguments|Parameters):", line)]
    if not starts:
        return []
    body = lines[starts[0] + 1 :]
    end = next((number for number, line in enumerate(body) if line and not line[0].isspace()), len(body))
    body = body[:end]
    base = min((len(line) - len(line.lstrip()) for line in body if line.strip()), default=0)
    return [(len(line) - len(line.lstrip()) - base, line.strip()) for line in body]
