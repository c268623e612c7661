"""Plots of a sweep (metrics against guidance, precision against recall), of a comparison and of a suite."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aim_lightning.evaluation.report.comparison import Row, short_name, titles
from aim_lightning.evaluation.report.power_law import PowerLaw
from aim_lightning.evaluation.report.sweep import label, number_or_text, text
from aim_lightning.evaluation.run_metrics import HIGHER
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.files import atomic_path

Lines = dict[str, list[tuple[SamplingOptions, dict[str, Any]]]]
Curves = dict[str, dict[str, list[tuple[float, float, float]]]]


def write_plots(
    directory: Path, names: list[str], points: list[SamplingOptions], records: list[dict[str, Any]]
) -> list[Path]:
    """Write metrics.png and precision_recall.png with one line per choice of the options other than guidance."""
    axis = "cfg_scale" if "cfg_scale" in names else names[0]
    lines: Lines = {}
    for point, record in zip(points, records, strict=True):
        lines.setdefault(label(point, [name for name in names if name != axis]), []).append((point, record))
    metrics = [name for name in records[0]["metrics"] if "_std_" not in name]
    paths = [_plot_metrics(directory / "metrics.png", metrics, axis, lines)]
    pair = [next((name for name in metrics if name.startswith(metric)), None) for metric in ("recall", "precision")]
    if all(pair):
        paths.append(_plot_pair(directory / "precision_recall.png", *pair, axis, lines))
    return paths


def _plot_metrics(path: Path, metrics: list[str], axis: str, lines: Lines) -> Path:
    figure, panels = _panels(metrics, 3)
    for metric, plot in zip(metrics, panels, strict=True):
        for name, line in lines.items():
            error = [record.get("std", {}).get(metric, 0) for _, record in line]
            values = [record["metrics"][metric] for _, record in line]
            x = [number_or_text(point, axis) for point, _ in line]
            plot.errorbar(x, values, error, marker="o", label=name or None)
        plot.set_xlabel(axis)
    return _save(figure, lines, path)


def write_comparison(path: Path, rows: list[Row]) -> None:
    """Write one panel per column of the table, with a point and its deviation for every row that has a value."""
    columns = titles(rows)
    figure, panels = _panels(list(columns.values()), 1 + 0.25 * len(rows))
    for column, plot in zip(columns, panels, strict=True):
        for height, row in enumerate(rows):
            if value := row.values.get(column):
                plot.errorbar(value.mean, height, xerr=value.std, marker="o", capsize=3, color=f"C{height % 10}")
        is_named = plot.get_subplotspec().is_first_col()
        names = [short_name(row.name) if is_named else "" for row in rows]
        plot.set_yticks(range(len(rows)), names, fontsize=7)
        plot.locator_params(axis="x", nbins=4)
        plot.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
        plot.grid(axis="x", alpha=0.3)
    _save(figure, {}, path)


def write_curves(path: Path, curves: Curves, axis: str = "optimizer step", marker: str = "") -> None:
    """Write one panel per tag with a line per variation, its deviation over seeds as a band.

    Args:
        path: of the image.
        curves: (step, mean, deviation) by tag, by variation.
        axis: name of the first number, if it is not a step.
        marker: of the points of a line; a single point always has one.
    """
    tags = list(dict.fromkeys(tag for lines in curves.values() for tag in lines))
    figure, panels = _panels(tags, 3)
    for tag, plot in zip(tags, panels, strict=True):
        for name, points in ((name, lines[tag]) for name, lines in curves.items() if lines.get(tag)):
            steps, mean, deviation = map(np.array, zip(*points, strict=True))
            plot.plot(steps, mean, label=name, marker=marker if len(steps) > 1 else "o")
            plot.fill_between(steps, mean - deviation, mean + deviation, alpha=0.25)
        plot.set_xlabel(axis)
    _save(figure, {name: [] for name in curves}, path)


def write_power_laws(path: Path, laws: list[PowerLaw]) -> None:
    """Write one panel per law with its points and its line on logarithmic axes."""
    figure, panels = _panels([law.y for law in laws], 3)
    for law, plot in zip(laws, panels, strict=True):
        ends = np.array(sorted(x for x, _ in law.points.values()))[[0, -1]]
        plot.plot(ends, np.exp(law.intercept) * ends**law.exponent, color="0.6", label=f"exponent {law.exponent:.4f}")
        for name, (x, y) in law.points.items():
            plot.plot(x, y, marker="o", color="C0")
            plot.annotate(name, (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
        plot.set(xlabel=law.x, xscale="log", yscale="log")
        # A loss varies within one decade, where the usual format shows powers of ten only.
        plot.yaxis.set_minor_formatter("{x:.3g}")
        plot.yaxis.set_major_formatter("{x:.3g}")
        plot.tick_params(which="both", labelsize=7)
        plot.legend(fontsize=7)
    _save(figure, {}, path)


def _panels(names: list[str], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per metric, `height` inches each, whose title names the better direction."""
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, height * rows), layout="constrained")
    panels = [figure.add_subplot(rows, columns, number) for number in range(1, len(names) + 1)]
    for name, panel in zip(names, panels, strict=True):
        panel.set_title(f"{name} ({'↑' if HIGHER.match(name) else '↓'} better)", fontsize=9)
    return figure, panels


def _plot_pair(path: Path, across: str, up: str, axis: str, lines: Lines) -> Path:
    figure = Figure(figsize=(5, 4), layout="constrained")
    plot = figure.add_subplot()
    for name, line in lines.items():
        x, y = ([record["metrics"][metric] for _, record in line] for metric in (across, up))
        plot.plot(x, y, marker="o", label=name or None)
        for (point, _), *position in zip(line, x, y, strict=True):
            plot.annotate(text(point, axis), position, fontsize=7)
    plot.set(xlabel=across, ylabel=up, title=f"numbers: {axis}")
    return _save(figure, lines, path)


def _save(figure: Figure, lines: Lines, path: Path) -> Path:
    if len(lines) > 1:
        figure.axes[0].legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path
