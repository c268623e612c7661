"""Decide what `fit` does with a run directory, as a pure function of its content."""

import math
import re
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml

from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError

# Changes that do not affect the training itself. Any other change refuses to continue the run.
HARMLESS = tuple(yaml.safe_load(Path(__file__).with_name("harmless_changes.yaml").read_text(encoding="utf-8")))
ADVICE = "use another RUN, or --allow_changes true to continue anyway"


@dataclass(frozen=True)
class Progress:
    """Progress of a checkpoint: optimizer steps, finished epochs, and the seconds that max_time limits."""

    path: Path
    step: int
    epoch: int
    seconds: float = 0.0


@dataclass(frozen=True)
class RunContent:
    """Content of a run directory, as input of the decision.

    Args:
        newest: newest undamaged checkpoint, or None.
        damaged: newer checkpoints that are damaged, each with the reason.
        before: configuration in the newest checkpoint.
        now: requested configuration.
        imported_from: source of the newest checkpoint's weights, if they were imported.
        data: rows and fingerprint of the training set in that checkpoint; None for imported weights.
        validation: metrics of the last validation before that checkpoint; empty without one.
    """

    newest: Progress | None
    damaged: dict[Path, str]
    before: dict[str, Any]
    now: dict[str, Any]
    imported_from: str | None = None
    data: dict[str, Any] | None = None
    validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Decision about a run: action, checkpoint to start from, and lines to print.

    For `refuse` the notes contain the reason. `changes` are the notes about changed options or data.
    """

    action: Literal["fresh", "continue", "finished", "refuse"]
    checkpoint: Path | None = None
    step: int = 0
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def decide(content: RunContent, allow_changes: bool = False, advice: str = ADVICE) -> Decision:
    """Decide whether to start fresh, continue, report a finished run, or refuse.

    Args:
        content: of the run directory.
        allow_changes: continue with another configuration.
        advice: end of the message that refuses another configuration.
    """
    notes = [f"ignoring damaged checkpoint: {line}" for line in content.damaged.values()]
    newest = content.newest
    # Starting afresh would overwrite the only traces of a damaged run.
    if newest is None:
        if content.damaged:
            return Decision("refuse", notes=[*notes, "every checkpoint of this run is damaged; move the run away"])
        return Decision("fresh")
    if content.imported_from:
        origin = f"it contains weights imported from {content.imported_from}, no training to continue"
        return Decision("refuse", notes=[*notes, f"{origin}; train in another RUN"])
    changes = differences(content.before, content.now)
    harmful = [line for key, line in changes.items() if not _is_harmless(key, content)]
    if harmful and not allow_changes:
        return Decision("refuse", notes=["the configuration changed: " + "; ".join(harmful) + f"; {advice}"])
    notes += [f"changed since this run started: {line}" for line in changes.values()]
    action = "finished" if is_finished(newest, content.now.get("trainer") or {}) else "continue"
    return Decision(action, newest.path, newest.step, notes, list(changes.values()))


def refusal(directory: RunDirectory, decision: Decision) -> str:
    """Return in one line why a run is not continued."""
    return f"{directory.path} is left as it is: {' '.join(decision.notes)}"


def decide_on_data(
    decision: Decision, before: dict[str, Any] | None, now: dict[str, Any], allow_changes: bool = False
) -> Decision:
    """Refuse to continue where the training set under the same path has changed.

    Args:
        decision: of `decide`, made before the data was opened.
        before: `rows` and `fingerprint` of the training set in the checkpoint; None without a checkpoint.
        now: `rows` and `fingerprint` of the present training set.
        allow_changes: continue and note the change.
    """
    if before is None or (before["rows"], before["fingerprint"]) == (now["rows"], now["fingerprint"]):
        return decision
    old, new = (f"{data['rows']} rows ({data['fingerprint'][:12]})" for data in (before, now))
    line = f"data had {old}, has {new}"
    if not allow_changes:
        return Decision("refuse", notes=[f"the training data changed under the same path: {line}; {ADVICE}"])
    note = f"changed since this run started: {line}"
    return replace(decision, notes=[*decision.notes, note], changes=[*decision.changes, line])


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the dotted keys whose values differ, each with a readable line."""
    lines = {}
    for key in sorted(before.keys() | now.keys()):
        name, old, new = f"{prefix}{key}", before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines |= differences(old, new, f"{name}.")
        elif old != new:
            lines[name] = f"{name} was {old!r}, is {new!r}"
    return lines


def _is_harmless(key: str, content: RunContent) -> bool:
    if key in ("trainer.max_steps", "trainer.max_epochs"):
        # A decaying schedule depends on the last step.
        model = (content.now.get("model") or {}).get("init_args") or {}
        return (model.get("optimizer") or {}).get("schedule") == "constant"
    options = [option for option in HARMLESS if f"{key}.".startswith(f"{option}.")]
    return bool(options) and not f"{key}.".startswith("callbacks.ema.")


def is_finished(newest: Progress, trainer: dict[str, Any]) -> bool:
    """Return True once max_steps, max_epochs or max_time is reached."""
    max_steps, max_epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    # -1 means no limit.
    steps_done = max_steps is not None and 0 <= max_steps <= newest.step
    epochs_done = max_epochs is not None and 0 <= max_epochs <= newest.epoch
    return steps_done or epochs_done or newest.seconds >= max_seconds(trainer)


def max_seconds(trainer: dict[str, Any]) -> float:
    """Return the seconds of max_time, DD:HH:MM:SS or a mapping of units; infinite without it.

    Raises:
        UserError: neither of the two.
    """
    if (limit := trainer.get("max_time")) is None:
        return math.inf
    if isinstance(limit, str) and (match := re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", limit.strip())):
        limit = dict(zip(("days", "hours", "minutes", "seconds"), map(int, match.groups()), strict=True))
    try:
        return timedelta(**limit).total_seconds()
    except TypeError:  # another text, or unknown units
        raise UserError(f"trainer.max_time is {limit!r}; write DD:HH:MM:SS, such as 00:01:30:00") from None
