"""Text tables: aligned for the terminal, and in Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

MISSING = "–"
NUMBER = re.compile(rf"[-+\d.,e]+|{MISSING}|nan|inf")


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns have one width each, two spaces apart; columns of numbers are aligned right.

    Args:
        head: titles of the columns.
        rows: texts, one per column.
    """
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [bool(rows) and all(NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    formats = [f"{{:{'>' if right else '<'}{width}}}" for right, width in zip(numeric, widths, strict=True)]
    lines = zip(*columns, strict=True)
    return "\n".join("  ".join(map(str.format, formats, line)).rstrip() for line in lines)


def markdown(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown, which ends with a newline."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]]) + "\n"
