"""Results of a suite: a table over the seeds of each variation, its curves and its fits."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aim_lightning.evaluation.report.comparison import Column, Row, Value, combine, record_values, write_tables
from aim_lightning.evaluation.report.plots import write_curves, write_power_laws
from aim_lightning.evaluation.report.power_law import fit
from aim_lightning.evaluation.report.sources import read_row
from aim_lightning.evaluation.report.sweep import POINTS
from aim_lightning.evaluation.report.table import guidance
from aim_lightning.evaluation.run_metrics import HEADLINE, NO_SCORES
from aim_lightning.evaluation.score_record import read_record
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.results import read_results
from aim_lightning.utils.files import read_json, write_text

SPEED = "perf/images_per_s"
CURVES = ("train/loss", "val/loss", "val/bits_per_code", "val/psnr")
SIZE = Column("parameters_in_millions", "", "trained network")
FLOPS = Column("training_flops", "", "floating-point operations of the training, mean over seeds")
SCALE = Column("cfg_scale", "", "guidance of the samples")
VALIDATION = "last validation of the training"
MEDIAN = "median over the training, at equal load of the machine only"
CHART, LAWS, GUIDANCE = "curves.png", "scaling.png", "guidance.png"
SHOWN = 8  # rows that fit next to each other in a terminal
Scalars = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Variation:
    """The finished runs of a variation, with the sizes of its training.

    Args:
        runs: one per seed.
        parameters: of the network.
        step_flops: floating-point operations of an optimizer step.
        scales: of guidance in the suite's sweep; empty = scored by `evaluate`, or not at all.
    """

    runs: list[RunDirectory]
    parameters: int
    step_flops: int
    scales: list[float]


def write_report(directory: Path, variations: dict[str, Variation], evaluated: bool, power_law: dict[str, Any]) -> str:
    """Write results.csv, table.md and the charts; return the fits, and a table of up to 8 rows, as text for a terminal.

    Args:
        directory: for the files; its name is that of the suite.
        variations: by name.
        evaluated: the runs have scores of images.
        power_law: columns of the fits, a list `x` and a name `y`; empty = no fit.

    Raises:
        UserError: a column of `power_law` does not fit.
    """
    curves = {name: [read_scalars(run.path) for run in item.runs] for name, item in variations.items()}
    rows = {name: _rows(name, item, curves[name], evaluated, directory.name) for name, item in variations.items()}
    all_rows = [row for several in rows.values() for row in several]
    # Before the files: an error leaves those of an earlier call as they are.
    laws = [fit(x, power_law["y"], [several[0] for several in rows.values()]) for x in power_law.get("x", [])]
    text = write_tables(directory, all_rows, ("table.md", "results.csv"))
    for name in (CHART, LAWS, GUIDANCE):  # of an earlier call, whose suite may have had other keys
        (directory / name).unlink(missing_ok=True)
    means = {name: mean_curves(several) for name, several in curves.items()}
    if any(means.values()):  # none without TensorBoard files
        write_curves(directory / CHART, means)
    fits = "".join(f"- {law}\n" for law in laws)
    page = directory / "table.md"
    write_text(page, "\n".join([page.read_text(encoding="utf-8"), *([fits] if fits else []), _origin(variations)]))
    if laws:
        write_power_laws(directory / LAWS, laws)
    if guided := {name: _guidance_curves(several) for name, several in rows.items() if SCALE in several[0].values}:
        write_curves(directory / GUIDANCE, guided, SCALE.metric, "o")
    return "\n".join([*([text] if len(all_rows) <= SHOWN else []), *map(str, laws)])


def _rows(name: str, item: Variation, scalars: list[Scalars], evaluated: bool, sweep: str) -> list[Row]:
    """Return the row of a variation, or one per guidance scale."""
    steps = statistics.fmean(read_results(run.results)["protocol"]["step"] for run in item.runs)
    size = {SIZE: Value(item.parameters / 1e6), FLOPS: Value(steps * item.step_flops)}
    seeds = [_run_rows(*pair, evaluated, item.scales and sweep) for pair in zip(item.runs, scalars, strict=True)]
    rows = [combine(name, list(several)) for several in zip(*seeds, strict=True)]
    scales = [{SCALE: Value(scale)} for scale in item.scales] or [{}]
    return [Row(name, size | scale | row.values, row.guidance) for scale, row in zip(scales, rows, strict=True)]


def _run_rows(run: RunDirectory, scalars: Scalars, evaluated: bool, sweep: str | None) -> list[Row]:
    """Return validation metrics, speed, and the scores of images of a run, a row per point of its sweep."""
    metrics = read_results(run.results)["metrics"]
    validation = {
        name: value for name, value in metrics.items() if name.startswith("val/") and not NO_SCORES.search(name)
    }
    values = {Column(name, "", VALIDATION): Value(value) for name, value in validation.items()}
    if SPEED in scalars:
        values[Column(SPEED, "", MEDIAN)] = Value(statistics.median(value for _, value in scalars[SPEED]))
    if not evaluated:
        return [Row(run.run, values)]
    if sweep:
        points = read_json(run.path / "sweeps" / sweep / POINTS, "list of scores")
        return [Row(run.run, values | record_values(x), guidance(x["protocol"]["sampling"])) for x in points]
    row = read_row(str(run.path), run.root, read_record)
    return [Row(run.run, values | row.values, row.guidance)]


def _guidance_curves(rows: list[Row]) -> dict[str, list[tuple[float, float, float]]]:
    """Return (scale, mean, deviation) by headline metric of images."""
    result = {}
    for row in rows:
        for column, value in row.values.items():
            if column.metric.startswith(HEADLINE) and not column.metric.startswith("val/"):
                result.setdefault(column.metric, []).append((row.values[SCALE].mean, value.mean, value.std))
    return result


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


def _origin(variations: dict[str, Variation]) -> str:
    """Return lines with the steps, commits and hardware of all runs."""
    results = [read_results(run.results) for item in variations.values() for run in item.runs]

    def several(value: Callable[[dict], object]) -> str:
        return ", ".join(dict.fromkeys(str(value(result)) for result in results))

    names = ", ".join(f"{name} ({len(item.runs)})" for name, item in variations.items())
    steps = several(lambda result: f"{result['protocol']['step']:,}")
    commits, hardware = (several(lambda result, key=key: result[key]) for key in ("commit", "hardware"))
    return f"Runs: {names}. Steps: {steps}. Commit: {commits}. Hardware: {hardware}.\n"
