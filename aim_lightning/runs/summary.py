"""Find run directories, and summarise each from the files that a training writes."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aim_lightning.runs.directory import NAME, RunDirectory
from aim_lightning.runs.history import read_content
from aim_lightning.runs.lease import is_held
from aim_lightning.runs.results import read_results
from aim_lightning.runs.resume_policy import RunContent, decide
from aim_lightning.utils.errors import UserError, suggest

# Any of these makes a directory a run.
MARKERS = ("lease.json", "history.jsonl", "config.yaml", "checkpoints", "results.json")
RESULTS = ("comparisons", "given")  # directories under runs_root that `evaluate` writes
# Action that `fit` would take -> state of a run without a live training.
STATES = {"fresh": "stopped", "continue": "stopped", "finished": "finished", "refuse": "refused"}


@dataclass(frozen=True)
class RunSummary:
    """Progress of a run.

    Args:
        directory: of the run.
        state: ``training`` with a live lease; ``finished`` at its last step; ``stopped`` otherwise; ``refused`` where
            `fit` ended with a user error or every checkpoint is damaged; ``imported`` for weights without training.
        step: optimizer steps of the newest undamaged checkpoint.
        validation: metrics of the last validation by name.
        data: rows and fingerprint of the training set; empty where they are unknown.
        configuration: of the newest checkpoint; empty without one.
    """

    directory: RunDirectory
    state: str
    step: int
    validation: dict[str, float] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)


def find_runs(root: Path, experiments: Collection[str] = ()) -> tuple[list[RunDirectory], list[Path]]:
    """Find the runs under a directory of runs, in order of their names.

    Args:
        root: directory of runs, ``runs`` by default.
        experiments: names to search; all if empty.

    Returns:
        (runs, other directories at the same depth without the results of `evaluate`).

    Raises:
        UserError: there is no such directory or experiment.
    """
    if not root.is_dir():
        raise UserError(f"{root} does not exist; run this in the root of a checkout, or set --runs_root")
    present = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if unknown := sorted(set(experiments) - set(present)):
        hint = suggest(unknown[0], present) or f"; {root} has: {', '.join(present) or 'no runs'}"
        raise UserError(f"{root / unknown[0]} does not exist{hint}")
    names = [name for name in present if not experiments or name in experiments]
    runs, others = [], []
    for path in (path for name in names for path in sorted((root / name).iterdir()) if path.is_dir()):
        is_run = NAME.fullmatch(path.parent.name) and NAME.fullmatch(path.name)
        if is_run and any((path / marker).exists() for marker in MARKERS):
            runs.append(RunDirectory(path.parent.name, path.name, root))
        elif path.parent.name not in RESULTS:
            others.append(path)
    return runs, others


def summarise(directory: RunDirectory, was_refused: bool = False) -> RunSummary:
    """Read state, step and validation metrics of a run, without comparing checksums.

    Args:
        directory: of the run.
        was_refused: the last start ended with a user error.

    Raises:
        UserError: a file of the run cannot be read.
    """
    # The lease comes first: training writes its last checkpoint before it releases the lease.
    is_training = is_held(directory.lease)
    content = read_content(directory, {}, verify=False)
    step = content.newest.step if content.newest else 0
    results = read_results(directory.results)
    # `validate` scores the newest checkpoint again; results of an earlier step are older than the checkpoint's.
    metrics = results["metrics"] if results["protocol"].get("step") == step else content.validation
    validation = {name: value for name, value in metrics.items() if name.startswith("val/")}
    state = "training" if is_training else _state(content, was_refused)
    return RunSummary(directory, state, step, validation, content.data or {}, content.before)


def _state(content: RunContent, was_refused: bool) -> str:
    if content.imported_from:
        return "imported"
    # Compared with its own configuration, a run differs in nothing.
    state = STATES[decide(replace(content, now=content.before)).action]
    return "refused" if was_refused and state == "stopped" else state
