"""Decide what `fit` does with a run directory, as a pure function of its content."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from aim_lightning.runs.directory import RunDirectory

# Changes that do not affect the training itself. Any other change refuses to continue the run.
# `init_from` is read at step 0 only; the others change speed and memory.
MODEL = ("compile", "backend", "gradient_checkpointing", "init_from", "loss.perceptual_file", "lpips_file")
DATA = ("num_workers", "val_batch_size", "max_device_batch_size", "out", "on_corrupt", "skip_limit", "cache_dir")
# Type and number of devices: the global batch and its rows stay the same.
DEVICES = ("accelerator", "devices", "num_nodes", "strategy", "benchmark", "deterministic")
REPORTING = ("log_every_n_steps", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler")
VALIDATION = ("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "inference_mode")
LIMITS = ("limit_val_batches", "limit_test_batches", "limit_predict_batches", "max_time", "min_steps", "min_epochs")
HARMLESS = (
    *("run", "callbacks", "logger", "sampling", "features", "runs_root", "cluster", "tokenize"),
    *(f"model.init_args.{name}" for name in MODEL),
    *(f"data.init_args.{name}" for name in (*DATA, "retries", "retry_pause")),
    *(f"trainer.{name}" for name in (*DEVICES, *REPORTING, *VALIDATION, *LIMITS, "detect_anomaly")),
)
# Averaged weights are part of the result.
CALLBACKS_HARMFUL = ("callbacks.ema",)
ADVICE = "use another RUN, or --allow_changes true to continue anyway"


@dataclass(frozen=True)
class Progress:
    """Progress of a checkpoint: optimizer steps and finished epochs."""

    path: Path
    step: int
    epoch: int


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
    """

    newest: Progress | None
    damaged: dict[Path, str]
    before: dict[str, Any]
    now: dict[str, Any]
    imported_from: str | None = None
    data: dict[str, Any] | None = None


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


def decide(content: RunContent, allow_changes: bool = False) -> Decision:
    """Decide whether to start fresh, continue, report a finished run, or refuse."""
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
        return Decision("refuse", notes=["the configuration changed: " + "; ".join(harmful) + f"; {ADVICE}"])
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
    return _is_under(key, HARMLESS) and not _is_under(key, CALLBACKS_HARMFUL)


def _is_under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def is_finished(newest: Progress, trainer: dict[str, Any]) -> bool:
    """Return True once max_steps or max_epochs is reached."""
    max_steps, max_epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    # -1 means no limit.
    steps_done = max_steps is not None and 0 <= max_steps <= newest.step
    epochs_done = max_epochs is not None and 0 <= max_epochs <= newest.epoch
    return steps_done or epochs_done
