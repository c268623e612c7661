"""`aim-lightning runs`: list runs with their state and best metrics; `runs diff` compares two."""

import argparse
import csv
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aim_lightning.cli.common_options import option
from aim_lightning.cli.registry import Command
from aim_lightning.cluster.job_registry import was_refused
from aim_lightning.config.yaml import inline, read_mapping
from aim_lightning.runs.comparison import differing_leaves
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError, shorten, suggest
from aim_lightning.utils.logging import log_next, warn
from aim_lightning.utils.table import MISSING, aligned

if TYPE_CHECKING:
    from aim_lightning.runs.summary import RunSummary

HELP = "list runs with step, state and best metrics; diff compares two"
NEEDS_CONFIG = False
COLUMNS = ("experiment", "run", "step", "state")
LOSS = "val/loss"
SHOWN = 3  # best metrics in the table, and other directories in the warning
# Files of a run may have any content, such as those of other programs.
UNREADABLE = (UserError, OSError, LookupError, TypeError, ValueError, AttributeError)


class Row(NamedTuple):
    """A run in the list: names, step, state, loss of the last validation, and the best value of each metric."""

    experiment: str
    run: str
    step: int
    state: str
    loss: float | None
    metrics: dict[str, float]


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs_root", **option("directory of all runs", "runs", metavar="DIR"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    names = "only the runs of these experiments; `diff` as the first word compares two runs"
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=names)
    _add_root(parser)
    order = f"order: {', '.join(COLUMNS)}, or a metric such as {LOSS}, best first"
    parser.add_argument("--sort", **option(order, "experiment", metavar="COLUMN"))
    # Not `flag`, whose optional value would take the name of an experiment.
    parser.add_argument("--json", action="store_true", help="print JSON with every metric")
    parser.add_argument("--csv", action="store_true", help="print CSV with a column per metric")


def _add_pair(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, metavar=name.upper(), help="EXPERIMENT/RUN, or a run directory")
    _add_root(parser)


def run(config: None, options: argparse.Namespace) -> int:
    """Print a line per run; a directory that cannot be read causes one warning."""
    from aim_lightning.runs.summary import find_runs

    if options.json and options.csv:
        raise UserError("command line: --json and --csv exclude each other; give one")
    directories, others = find_runs(Path(options.runs_root), options.experiments)
    rows = _sorted([row for directory in directories if (row := _row(directory))], options.sort)
    if others:
        warn(f"directories that are not runs are left out: {shorten(others, SHOWN)}")
    if options.json:
        print(json.dumps([_plain(row) for row in rows], indent=2))
    elif options.csv:
        _print_csv(rows)
    elif rows:
        print(aligned((*COLUMNS, LOSS, "best metrics"), [_cells(row) for row in rows]))
    elif not directories:
        places = [Path(options.runs_root, name) for name in options.experiments] or [options.runs_root]
        print(f"no runs in {', '.join(map(str, places))}")
        log_next("make demo, or make train EXP=…")
    return 0


def _read(directory: RunDirectory) -> tuple["RunSummary", dict[str, float]]:
    """Return the summary of a run and its best metrics.

    Raises:
        UserError: a file of the run cannot be read.
    """
    from aim_lightning.evaluation.run_metrics import best, best_metrics
    from aim_lightning.runs.summary import summarise

    try:
        started = directory.history.stat().st_mtime if directory.history.exists() else 0.0
        summary = summarise(directory, was_refused(directory.path, started))
        metrics = best_metrics(directory)
        for name, value in summary.validation.items():
            metrics[name] = best(name, [value, metrics.get(name, value)])
    except UNREADABLE as error:
        reason = str(error) or type(error).__name__
        # Never the advice to remove it: its checkpoints may be intact.
        fix = "move the damaged file away, or the directory if it is not a run"
        raise UserError(f"{directory.path} cannot be read ({reason}); {fix}") from error
    return summary, metrics


def _row(directory: RunDirectory) -> Row | None:
    """Return a run's row, or None after a warning."""
    try:
        summary, metrics = _read(directory)
    except UserError as error:
        warn(str(error))
        return None
    loss = summary.validation.get(LOSS)
    return Row(directory.experiment, directory.run, summary.step, summary.state, loss, metrics)


def _sorted(rows: list[Row], column: str) -> list[Row]:
    """Return rows in the order of a column: names and states by letter, steps and metrics from the best on."""
    from aim_lightning.evaluation.run_metrics import HIGHER

    if column in COLUMNS:
        return sorted(rows, key=lambda row: (-row.step if column == "step" else getattr(row, column), row[:2]))
    metrics = sorted({name for row in rows for name in row.metrics})
    if rows and column not in metrics:
        hint = suggest(column, [*COLUMNS, *metrics]) or f"; use one of {', '.join((*COLUMNS, *metrics))}"
        raise UserError(f"--sort: no run has the metric {column!r}{hint}")
    sign = -1 if HIGHER.match(column) else 1

    def cost(row: Row) -> float:
        value = sign * row.metrics.get(column, math.nan)
        return value if math.isfinite(value) else math.inf

    return sorted(rows, key=lambda row: (cost(row), row[:2]))


def _plain(row: Row) -> dict[str, Any]:
    """Return a row for JSON, which has null instead of NaN."""
    metrics = {name: value if math.isfinite(value) else None for name, value in row.metrics.items()}
    loss = row.loss if row.loss is not None and math.isfinite(row.loss) else None
    return row._asdict() | {"loss": loss, "metrics": metrics}


def _cells(row: Row) -> list[str]:
    from aim_lightning.evaluation.run_metrics import HEADLINE

    shown = [f"{name} {value:.4g}" for name, value in row.metrics.items() if name.startswith(HEADLINE)]
    loss = MISSING if row.loss is None else f"{row.loss:.4f}"
    return [row.experiment, row.run, str(row.step), row.state, loss, ", ".join(shown[:SHOWN]) or MISSING]


def _print_csv(rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*COLUMNS, *names])
    writer.writerows([*row[: len(COLUMNS)], *(row.metrics.get(name, "") for name in names)] for row in rows)


def _diff(config: None, options: argparse.Namespace) -> int:
    """Print the options that differ between two runs, and their metrics side by side."""
    directories = [_find(text, Path(options.runs_root)) for text in (options.first, options.second)]
    summaries, metrics = zip(*map(_read, directories), strict=True)
    head = [f"{directory.experiment}/{directory.run}" for directory in directories]
    differences = differing_leaves(*map(_configuration, summaries))
    # One path may hold other images at another time.
    differences |= differing_leaves(*({"training set": _describe(summary.data)} for summary in summaries))
    rows = [[name, *map(_text, pair)] for name, pair in differences.items()]
    print(aligned(("option", *head), rows) if rows else "both runs have the same configuration")
    rows = [[name, *(str(getattr(summary, name)) for summary in summaries)] for name in ("step", "state")]
    for name in dict.fromkeys(name for values in metrics for name in values):
        rows.append([name, *(f"{values[name]:.6g}" if name in values else MISSING for values in metrics)])
    print(f"\n{aligned(('metric', *head), rows)}")
    return 0


def _find(text: str, root: Path) -> RunDirectory:
    """Return the run that a user names by EXPERIMENT/RUN or by its directory."""
    path = Path(text) if Path(text).is_dir() else root / text
    if not path.is_dir() or path.resolve() == root.resolve():
        raise UserError(f"{text} is not a run; give EXPERIMENT/RUN or a run directory (`runs` lists them)")
    path = path.resolve()
    return RunDirectory(path.parent.name, path.name, path.parent.parent)


def _configuration(summary: "RunSummary") -> dict[str, Any]:
    """Return the configuration of the last start, or the newest checkpoint's where that file is missing."""
    path = summary.directory.config
    if not path.exists() and not summary.configuration:
        raise UserError(f"{summary.directory.path} holds neither config.yaml nor a checkpoint; give another run")
    return read_mapping(path, str(path)) if path.exists() else summary.configuration


def _text(value: Any) -> str:
    return value if isinstance(value, str) else inline(value, 1000)


def _describe(data: dict[str, Any]) -> str | None:
    return f"{data['rows']} rows, {data['fingerprint'][:12]}" if data else None


ACTIONS = {"diff": Command("print what differs between two runs", _diff, _add_pair, False)}
