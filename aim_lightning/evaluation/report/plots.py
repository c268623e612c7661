"""Plots of a sweep: metrics against guidance, precision against recall."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aim_lightning.evaluation.report.sweep import label, text
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path

Lines = dict[str, list[tuple[SamplingOptions, dict[str, Any]]]]


def write_plots(
    directory: Path, names: list[str], points: list[SamplingOptions], records: list[dict[str, Any]]
) -> list[Path]:
    """metrics.png, every metric against guidance, and precision_recall.png; a line for each choice of other options.

    Raises:
        UserError: matplotlib is not there; results.csv is complete all the same.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("no plots without matplotlib; install it and call the same again (results are kept)") from None
    matplotlib.use("Agg")
    axis = "cfg_scale" if "cfg_scale" in names else names[0]
    lines: Lines = {}
    for point, record in zip(points, records, strict=True):
        lines.setdefault(label(point, [name for name in names if name != axis]), []).append((point, record))
    metrics = [name for name in records[0]["metrics"] if "_std_" not in name]
    paths = [_plot_metrics(directory / "metrics.png", metrics, axis, lines)]
    pairs = [[name for name in metrics if name.startswith(what)] for what in ("recall", "precision")]
    if all(pairs):
        paths.append(_plot_pair(directory / "precision_recall.png", pairs[0][0], pairs[1][0], axis, lines))
    return paths


def _plot_metrics(path: Path, metrics: list[str], axis: str, lines: Lines) -> Path:
    from matplotlib import pyplot

    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    for place, metric in itertools.zip_longest(axes.flat, metrics):
        if metric is None:
            place.set_axis_off()
            continue
        for name, line in lines.items():
            error = [record.get("std", {}).get(metric, 0) for _, record in line]
            values = [record["metrics"][metric] for _, record in line]
            place.errorbar([_at(point, axis) for point, _ in line], values, error, marker="o", label=name or None)
        place.set_xlabel(axis)
        place.set_title(metric, fontsize=9)
    return _save(figure, axes.flat[0], len(lines), path)


def _plot_pair(path: Path, across: str, up: str, axis: str, lines: Lines) -> Path:
    from matplotlib import pyplot

    figure, place = pyplot.subplots(figsize=(5, 4), layout="constrained")
    for name, line in lines.items():
        x, y = ([record["metrics"][metric] for _, record in line] for metric in (across, up))
        place.plot(x, y, marker="o", label=name or None)
        for (point, _), *at in zip(line, x, y, strict=True):
            place.annotate(text(point, axis), at, fontsize=7)
    place.set(xlabel=across, ylabel=up, title=f"numbers: {axis}")
    return _save(figure, place, len(lines), path)


def _at(point: SamplingOptions, axis: str) -> float | str:
    value = asdict(point)[axis]
    return value if isinstance(value, int | float) else text(point, axis)


def _save(figure, legend, lines: int, path: Path) -> Path:
    from matplotlib import pyplot

    if lines > 1:
        legend.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    return path
