"""Sampling options varied over a grid."""

import csv
import io
import itertools
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from aim_lightning.config.yaml import YamlError, parse
from aim_lightning.evaluation.score_record import read_format
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.errors import UserError, suggest
from aim_lightning.utils.files import write_text
from aim_lightning.utils.table import markdown

COMMA = re.compile(r",(?![^\[]*\])")  # not inside brackets, which hold the two ends of an interval
FORMAT = "aim_lightning.sweep/1"
TABLE, PROTOCOL, POINTS = "results.csv", "protocol.json", "points.json"
VARIABLE = tuple(field.name for field in fields(SamplingOptions) if field.name != "batch_size")


def parse_grid(text: str) -> dict[str, list[Any]]:
    """Return the values by option of a grid such as ``cfg_scale=1,1.5 cfg_interval=[0,0.5],[0.2,0.8]``.

    Raises:
        UserError: an unknown option, no values, or an option or a value that occurs twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in text.split():
        name, equals, values = word.partition("=")
        if name not in VARIABLE:
            hint = suggest(name, VARIABLE) or f"; use {', '.join(VARIABLE)}"
            raise UserError(f"--grid: {name!r} is no sampling option{hint}")
        if name in grid or not equals or not values:
            raise UserError(f"--grid: {word!r}; write each option once, as {name}=VALUE,VALUE")
        try:
            grid[name] = [parse(value) for value in COMMA.split(values)]
        except YamlError as problem:
            raise UserError(f"--grid: {name}: {problem}") from None
        # Values may be lists, so that a set cannot find the duplicates.
        if any(value in grid[name][:i] for i, value in enumerate(grid[name])):
            raise UserError(f"--grid: {word!r} has a value twice; write each once")
    if not grid:
        raise UserError('--grid is empty; write for example "cfg_scale=1,1.5,2 top_k=0,600"')
    return grid


def grid_points(grid: dict[str, list[Any]], base: SamplingOptions) -> list[SamplingOptions]:
    """Return every combination of the grid, the last option varying fastest.

    Args:
        grid: values by option.
        base: options that do not vary.

    Raises:
        UserError: a value that the option does not take.
    """
    try:
        return [replace(base, **dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    except UserError as error:
        raise UserError(f"--grid: {error}") from None


def label(point: SamplingOptions, names: list[str]) -> str:
    """Return the values of the options that vary, such as ``cfg_scale=1.5,top_k=600``."""
    return ",".join(f"{name}={text(point, name)}" for name in names)


def text(point: SamplingOptions, name: str) -> str:
    """Return one option's value as in tables and names."""
    value = asdict(point)[name]
    values = value if isinstance(value, tuple) else [value]
    return "-".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values)


def number_or_text(point: SamplingOptions, name: str) -> float | str:
    """Return one option's value for plots and hparams, which take no lists."""
    value = asdict(point)[name]
    return value if isinstance(value, int | float) else text(point, name)


def write_csv(path: Path, names: list[str], points: list[SamplingOptions], records: list[dict[str, Any]]) -> None:
    """Write a row per point: the options that vary, all metrics, and with several seeds their spread."""
    rows = []
    for point, record in zip(points, records, strict=True):
        spread = record["std"] if len(record.get("seeds", [])) > 1 else {}
        row = {name: text(point, name) for name in names} | record["metrics"]
        rows.append(row | {f"{name}_std_over_seeds": value for name, value in spread.items()})
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, file.getvalue())


def sweep_protocol(names: list[str], points: list[SamplingOptions], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the common protocol of all points, which results.csv needs, and the values that vary.

    `hardware` and `commit` are lists: points of a continued sweep may have several.
    """
    first = records[0]
    vary = {*names, *(["seed"] if len(first["seeds"]) > 1 else [])}
    sampling = {key: value for key, value in first["protocol"]["sampling"].items() if key not in vary}
    protocol = {key: value for key, value in first["protocol"].items() if key != "sampling"} | {"sampling": sampling}
    return {
        "format": FORMAT,
        **{key: first[key] for key in ("model", "data", "num_images")},
        "points": len(points),
        "varied": {name: list(dict.fromkeys(text(point, name) for point in points)) for name in names},
        "seeds_a_point": len(first["seeds"]),
        "protocol": protocol,
        **{key: sorted({record[key] for record in records}) for key in ("hardware", "commit")},
    }


def read_sweeps(directory: str | Path) -> dict[str, dict[str, Any]]:
    """Return the protocols of the recorded sweeps by name, in order.

    Raises:
        UserError: a directory without one.
    """
    paths = sorted(path for path in Path(directory).glob("[!.]*") if path.is_dir())
    return {path.name: read_format(path / PROTOCOL, "protocol of a sweep", FORMAT) for path in paths}


def lowest_points(records: list[dict[str, Any]], metric: str) -> list[int]:
    """Return the numbers of the point with the lowest value and of those within its noise, the lowest first.

    Args:
        records: of the points; with several seeds they have deviations (`std`).
        metric: name.
    """
    values = [record["metrics"][metric] for record in records]
    noise = [record.get("std", {}).get(metric, 0.0) for record in records]
    order = sorted(range(len(values)), key=values.__getitem__)
    return [i for i in order if i == order[0] or values[i] - values[order[0]] <= noise[i] + noise[order[0]]]


def write_hparams(
    directory: Path, names: list[str], points: list[SamplingOptions], records: list[dict[str, Any]]
) -> None:
    """Write the sessions of TensorBoard's HPARAMS tab again, one subdirectory per point, since each one is a run."""
    from torch.utils.tensorboard import SummaryWriter

    _remove_events(directory, "**/")
    for point, record in zip(points, records, strict=True):
        with SummaryWriter(str(directory / label(point, names))) as writer:
            metrics = {f"sweep/{name}": value for name, value in record["metrics"].items()}
            writer.add_hparams({name: number_or_text(point, name) for name in names}, metrics, run_name=".")


def write_page(directory: Path, plots: list[Path]) -> None:
    """Write the table and the plots of a sweep as one TensorBoard run, in place of an earlier one."""
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    _remove_events(directory)
    header, *rows = csv.reader(io.StringIO((directory / TABLE).read_text(encoding="utf-8")))
    with SummaryWriter(str(directory)) as writer:
        writer.add_text("sweep/results", markdown(header, rows))
        for path in plots:
            writer.add_image(f"sweep/{path.stem}", np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")


def _remove_events(directory: Path, below: str = "") -> None:
    """Remove TensorBoard files, which a second call would otherwise add to."""
    for previous in directory.glob(f"{below}events.out.tfevents.*"):
        previous.unlink()
