"""Plots of a sweep: metrics against guidance, precision against recall."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from aim_lightning.evaluation.report.sweep import label, number_or_text, text
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.files import atomic_path

LOWER_IS_BETTER = ("fid", "sfid", "fd_", "kid", "kd_", "mind_", "rfid", "rfd", "lpips")  # starts of names
Lines = dict[str, list[tuple[SamplingOptions, dict[str, Any]]]]


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
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for number, metric in enumerate(metrics, 1):
        plot = figure.add_subplot(rows, columns, number)
        for name, line in lines.items():
            error = [record.get("std", {}).get(metric, 0) for _, record in line]
            values = [record["metrics"][metric] for _, record in line]
            x = [number_or_text(point, axis) for point, _ in line]
            plot.errorbar(x, values, error, marker="o", label=name or None)
        plot.set_xlabel(axis)
        arrow = "↓" if metric.startswith(LOWER_IS_BETTER) else "↑"
        plot.set_title(f"{metric} ({arrow} better)", fontsize=9)
    return _save(figure, lines, path)


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
