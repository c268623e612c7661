"""Results of a suite: a table over the seeds of each variation, and its curves."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aim_lightning.evaluation.report.comparison import Column, Row, Value, combine, write_tables
from aim_lightning.evaluation.report.plots import write_curves
from aim_lightning.evaluation.report.sources import read_row
from aim_lightning.evaluation.run_metrics import NO_SCORES
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.results import read_results
from aim_lightning.utils.files import write_text

SPEED = "perf/images_per_s"
CURVES = ("train/loss", "val/loss", "val/bits_per_code", "val/psnr")
VALIDATION = "last validation of the training"
MEDIAN = "median over the training, at equal load of the machine only"
Scalars = dict[str, list[tuple[int, float]]]


def write_report(
    directory: Path, runs: dict[str, list[RunDirectory]], parameters: dict[str, int], evaluated: bool
) -> str:
    """Write results.csv, table.md and curves.png; return the table as text for a terminal.

    Args:
        directory: for the files.
        runs: finished runs by variation, one per seed.
        parameters: of the network, by variation.
        evaluated: the runs have scores of `evaluate`.
    """
    curves = {name: [read_scalars(run.path) for run in several] for name, several in runs.items()}
    rows = []
    for name, several in runs.items():
        size = Column("parameters_in_millions", "", "trained network")
        seeds = [_run_row(*pair, evaluated) for pair in zip(several, curves[name], strict=True)]
        row = combine(name, seeds)
        rows.append(Row(name, {size: Value(parameters[name] / 1e6), **row.values}, row.guidance))
    text = write_tables(directory, rows, files=("table.md", "results.csv"))
    page = directory / "table.md"
    write_text(page, f"{page.read_text(encoding='utf-8')}\n{_origin(runs)}")
    write_curves(directory / "curves.png", {name: mean_curves(several) for name, several in curves.items()})
    return text


def _run_row(run: RunDirectory, scalars: Scalars, evaluated: bool) -> Row:
    """Return validation metrics, speed, and the scores of images of a run."""
    metrics = read_results(run.results)["metrics"]
    validation = {
        name: value for name, value in metrics.items() if name.startswith("val/") and not NO_SCORES.search(name)
    }
    values = {Column(name, "", VALIDATION): Value(value) for name, value in validation.items()}
    if SPEED in scalars:
        values[Column(SPEED, "", MEDIAN)] = Value(statistics.median(value for _, value in scalars[SPEED]))
    if not evaluated:
        return Row(run.run, values)
    row = read_row(str(run.path), run.root, _no_images)
    return Row(run.run, values | row.values, row.guidance)


def _no_images(path: Path) -> dict:
    raise AssertionError(f"{path} is a run, whose images are not scored here")


def read_scalars(path: Path) -> Scalars:
    """Return speed and curves of a run from its TensorBoard files as (step, value) by tag."""
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in (SPEED, *CURVES) if tag in events.Tags()["scalars"]]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def mean_curves(runs: list[Scalars]) -> dict[str, list[tuple[int, float, float]]]:
    """Return (step, mean, sample deviation) over runs by tag, at the steps that all of them have."""
    result = {}
    for tag in (tag for tag in CURVES if all(tag in scalars for scalars in runs)):
        columns = [dict(scalars[tag]) for scalars in runs]
        steps = sorted(set.intersection(*map(set, columns)))
        result[tag] = [(step, *_spread(column[step] for column in columns)) for step in steps]
    return result


def _spread(values: Iterable[float]) -> tuple[float, float]:
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _origin(runs: dict[str, list[RunDirectory]]) -> str:
    """Return lines with the steps, commits and hardware of all runs."""
    results = [read_results(run.results) for several in runs.values() for run in several]

    def several(value: Callable[[dict], object]) -> str:
        return ", ".join(sorted({str(value(result)) for result in results}))

    names = ", ".join(f"{name} ({len(group)})" for name, group in runs.items())
    steps = several(lambda result: f"{result['protocol']['step']:,}")
    commits, hardware = (several(lambda result, key=key: result[key]) for key in ("commit", "hardware"))
    return f"Runs: {names}. Steps: {steps}. Commit: {commits}. Hardware: {hardware}.\n"
