"""Sources of a comparison: published rows, runs, records and image sets."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aim_lightning.evaluation.report.comparison import Row, combine, record_values, values_by_column
from aim_lightning.evaluation.report.table import PAPER, guidance, paper_results
from aim_lightning.evaluation.score_record import read_record
from aim_lightning.evaluation.scorer import RECORD
from aim_lightning.runs.results import read_results
from aim_lightning.utils.errors import UserError, suggest
from aim_lightning.utils.table import MISSING

PUBLISHED = {"published": "as reported, arXiv 2408.12245, table 2; the evaluators are not recorded"}
RECONSTRUCTION, PIXELS = ("rfid", "rfd"), ("psnr", "ssim", "lpips")  # first words of names
Score = Callable[[Path], dict[str, Any]]


def read_row(name: str, runs_root: Path, score: Score) -> Row:
    """Return the row of a published model, a run, a record or an image set, or the mean over those of a pattern.

    Args:
        name: model of the paper's table, EXPERIMENT/RUN, or a path: run directory, record (.json), directory of an
            evaluation, .npz or directory of images. A pattern with `*` gives the mean and deviation over its matches.
        runs_root: directory of all runs.
        score: scores an image set and returns its record.

    Raises:
        UserError: there is no such source, or it holds no scores.
    """
    papers = {row["model"].lower(): row for rows in paper_results().values() for row in rows}
    if row := papers.get(name.lower()):
        metrics = {f"{metric}_50k": row[metric] for metric in PAPER.values() if metric in row}
        return Row(name, values_by_column(metrics, lambda metric: PUBLISHED))
    if set(name) & set("*?["):
        return combine(name, [_read_path(str(path), path, score) for path in _matches(name, runs_root)])
    path = next((path for path in (Path(name), runs_root / name) if path.exists()), None)
    if path is None:
        models = [row["model"] for row in papers.values()]
        hint = suggest(name, models) or "; give EXPERIMENT/RUN, a path, or a model of the paper's table"
        raise UserError(f"--compare: {name} does not exist{hint}")
    return _read_path(name.rstrip("/"), path, score)


def _matches(pattern: str, runs_root: Path) -> list[Path]:
    anchor = Path(pattern).anchor  # pathlib matches relative patterns only
    relative = pattern.removeprefix(anchor)
    if paths := sorted(Path(anchor).glob(relative)) or sorted(runs_root.glob(relative)):
        return paths
    raise UserError(f"--compare: {pattern} matches nothing; give EXPERIMENT/RUN-* or a pattern of paths")


def _read_path(name: str, path: Path, score: Score) -> Row:
    results = path if path.name == "results.json" else path / "results.json"
    if results.is_file():
        with _converting(results):
            return _run_row(name, results)
    if (path / "checkpoints").is_dir():
        raise UserError(f"--compare: {name} holds no scores; run validate or evaluate first")
    if any(path.glob("*/checkpoints")):
        raise UserError(f"--compare: {name} is an experiment; give {name}/RUN, or {name}/* for the mean of its runs")
    path = path / RECORD if (path / RECORD).is_file() else path
    record = read_record(path) if path.suffix == ".json" else score(path)
    with _converting(path):
        return Row(name, record_values(record), guidance(record["protocol"].get("sampling") or {}))


@contextlib.contextmanager
def _converting(path: Path) -> Iterator[None]:
    """Convert the errors of a file with other entries than this project writes."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, StopIteration) as error:
        fact = f"{path} was not written by this project ({type(error).__name__}: {error})"
        raise UserError(f"--compare: {fact}; evaluate again") from error


def _run_row(name: str, path: Path) -> Row:
    """Return the row of results.json, without values whose protocol it does not contain, such as val/loss."""
    results, values, scales = read_results(path), {}, {}
    entries = [entry for entry in results["protocol"].values() if isinstance(entry, dict)]
    for metric, entry in ((metric, each) for each in entries for metric in each["metrics"]):
        if (protocol := _protocol(metric, entry)) is not None:
            record = {**entry, "metrics": {metric: results["metrics"][metric]}, "protocol": protocol}
            values |= record_values(record)
            scales[guidance(protocol.get("sampling") or {})] = None
    if not values:
        raise UserError(f"--compare: {path} holds no metrics of images; run validate or evaluate first")
    return Row(name, values, "; ".join(scale for scale in scales if scale != MISSING) or MISSING)


def _protocol(metric: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return the protocol of a metric from an entry of results.json: itself, or of the callback that computed it."""
    if "features" in entry:
        return entry
    if "/" in metric:
        return None  # losses, such as val/loss
    start = metric.partition("_")[0]
    keys = {"features"} if start in RECONSTRUCTION else set() if start in PIXELS else {"features", "num_images"}
    nested = [value for value in entry.values() if isinstance(value, dict) and "reference" in value]
    return next((value for value in nested if {"features", "num_images"} & value.keys() == keys), None)
