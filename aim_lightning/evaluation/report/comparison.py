"""Rows of scores in one table; a column holds values of one protocol only."""

import csv
import io
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aim_lightning.evaluation.report.table import number
from aim_lightning.evaluation.run_metrics import NO_SCORES
from aim_lightning.evaluation.score_record import chosen_classes, describe_reference
from aim_lightning.utils.files import write_text
from aim_lightning.utils.table import MISSING, aligned, markdown

# First word of a metric's name -> entries of the protocol that its values depend on, next to features and reference.
SETTINGS = {"is": ("inception_score",), "mind": ("mind",), "fdr": ("fdr",), "class": ("class_agreement",)}
SETTINGS |= dict.fromkeys(("kid", "kd"), ("kernel_distance",))
# Records of earlier versions use the second name.
SETTINGS |= dict.fromkeys(("precision", "recall", "density", "coverage"), ("neighbours", "precision_recall"))

INCEPTION = re.compile(r"(s?fid|is|kid|precision|recall|density|coverage)_(std_)?\d")  # names without a network

NAME = 30  # letters of a row's name in a terminal and in a plot


@dataclass(frozen=True)
class Column:
    """A metric under one protocol.

    Args:
        metric: name with the number of images.
        key: JSON of everything that values must share to be compared.
        legend: the same for readers.
    """

    metric: str
    key: str
    legend: str = field(compare=False)


class Value(NamedTuple):
    """Mean, sample deviation and number of seeds or runs behind it."""

    mean: float
    std: float = 0.0
    count: int = 1


@dataclass(frozen=True)
class Row:
    """The values of one source.

    Args:
        name: as the user wrote it.
        values: by column.
        guidance: scale and schedule of the samples.
    """

    name: str
    values: dict[Column, Value]
    guidance: str = MISSING


def record_values(record: dict[str, Any]) -> dict[Column, Value]:
    """Return the values of a record of scores by column, with their deviation over its seeds."""
    std, count = record.get("std") or {}, len(record.get("seeds") or [0])
    return values_by_column(record["metrics"], lambda metric: measurement(metric, record["protocol"]), std, count)


def values_by_column(
    metrics: dict[str, float], protocol: Callable[[str], dict], std: dict[str, float] | None = None, count: int = 1
) -> dict[Column, Value]:
    """Return metrics by column, without deviations and values of baselines.

    Args:
        metrics: by name.
        protocol: returns what values of a metric must share, plain values.
        std: deviations by name; None = single values.
        count: number of seeds behind each value.
    """
    result = {}
    for name in (name for name in metrics if not NO_SCORES.search(name)):
        shared = protocol(name)
        # Without the reference after "@", which the protocol contains.
        column = Column(name.partition("@")[0], json.dumps(shared, sort_keys=True), _legend(shared))
        result[column] = Value(metrics[name], (std or {}).get(name, 0.0), count)
    return result


def measurement(metric: str, protocol: dict[str, Any]) -> dict[str, Any]:
    """Return what two values of a metric must share to be compared: the protocol without the generating side.

    Args:
        metric: name.
        protocol: of a record.
    """
    if "+" in metric:  # a mean over networks, in any order
        networks = [protocol, *protocol["more_features"].values()]
        return {"networks": {part["features"]["network"]: measurement("fdr", part) for part in networks}}
    protocol = _of_network(metric, protocol)
    shared = {name: protocol[name] for name in ("features", "reference", "precision") if name in protocol}
    settings = [protocol[name] for name in SETTINGS.get(metric.partition("_")[0], ()) if name in protocol]
    shared |= {"settings": settings[0]} if settings else {}
    if chosen := chosen_classes(protocol):
        shared["classes"] = chosen
    return shared


def _of_network(metric: str, protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the part of the protocol for the network of a metric; names without a network are Inception's."""
    others = protocol.get("more_features") or {}
    if named := next((other for label, other in others.items() if f"_{label}_" in metric), None):
        return named
    return others.get("inception", protocol) if INCEPTION.match(metric) else protocol


def _legend(shared: dict[str, Any]) -> str:
    if "published" in shared:
        return shared["published"]
    if "networks" in shared:
        return "mean over: " + "; ".join(map(_legend, shared["networks"].values()))
    features, reference = shared.get("features"), shared["reference"]
    parts = [f"features {features['network']} ({features['weights_sha256'][:12]}…)"] if features else []
    whole = reference if isinstance(reference, str) else None
    parts.append(f"reference {whole[:12] + '…' if whole else describe_reference(reference)}")
    rest = {name: shared[name] for name in ("settings", "precision", "classes") if name in shared}
    return "; ".join([*parts, *(f"{name} {json.dumps(value)}" for name, value in rest.items())])


def combine(name: str, rows: list[Row]) -> Row:
    """Return the mean of several rows, such as runs with different seeds; their deviation is the sample deviation."""
    values = {}
    for column in dict.fromkeys(column for row in rows for column in row.values):
        present = [row.values[column] for row in rows if column in row.values]
        means = [value.mean for value in present]
        several = Value(statistics.fmean(means), statistics.stdev(means), len(means)) if len(means) > 1 else present[0]
        values[column] = several
    return Row(name, values, "; ".join(dict.fromkeys(row.guidance for row in rows)))


def titles(rows: list[Row]) -> dict[Column, str]:
    """Return the titles of all columns in order; columns of one metric are numbered and stand next to each other."""
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    names = list(dict.fromkeys(column.metric for column in columns))
    groups = {name: [column for column in columns if column.metric == name] for name in names}
    return {
        column: f"{name} [{i}]" if len(group) > 1 else name
        for name, group in groups.items()
        for i, column in enumerate(group, 1)
    }


def write_tables(directory: Path, rows: list[Row], files: tuple[str, str] = ("comparison.md", "comparison.csv")) -> str:
    """Write both tables; return the table as text with a line per metric, for a terminal.

    Args:
        directory: for the files.
        rows: at least one.
        files: names of the tables in Markdown and CSV.
    """
    columns = titles(rows)
    head = ("", *columns.values(), "guidance")
    cells = [[row.name, *(_cell(row.values.get(column)) for column in columns), row.guidance] for row in rows]
    legend = {}
    for column, title in columns.items():
        legend.setdefault(column.legend, []).append(title)
    notes = "".join(f"- {', '.join(names)}: {text}\n" for text, names in legend.items())
    note = "±: sample deviation over seeds or matching sources, their number in parentheses.\n"
    write_text(directory / files[0], f"{markdown(head, cells)}\n{note}\n{notes}")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["name", *(f"{title}{end}" for title in columns.values() for end in ("", "_std", "_count"))])
    for row in rows:
        values = [row.values.get(column) for column in columns]
        writer.writerow([row.name, *(cell for value in values for cell in _csv_cells(value))])
    write_text(directory / files[1], file.getvalue())
    first, *lines = zip(head, *([short_name(name), *row] for name, *row in cells), strict=True)
    return aligned(first, lines)


def short_name(name: str) -> str:
    """Return the end of a long name, in which paths differ most."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def _cell(value: Value | None) -> str:
    if value is None or value.count == 1:
        return number(value and value.mean)
    return f"{number(value.mean, value.std)} ({value.count})"


def _csv_cells(value: Value | None) -> tuple[float | str, ...]:
    """Return mean, deviation and count; empty cells for a missing value, no deviation of a single value."""
    if value is None:
        return "", "", ""
    return value.mean, value.std if value.count > 1 else "", value.count
