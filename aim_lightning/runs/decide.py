"""What `fit` does with a run directory: one pure function of what is in it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# Changes that leave the training itself as it is. Everything else stops a run from being continued.
HARMLESS = (
    "run",
    "callbacks",
    "logger",
    "sampling",
    "features",
    "runs_root",
    "model.init_args.compile",
    "data.init_args.num_workers",
    "data.init_args.val_batch_size",
    "data.init_args.max_device_batch_size",
    "data.init_args.out",
    "trainer",
)
# Under trainer: these are no harmless changes.
TRAINER_HARMFUL = ("trainer.precision", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm")
# The averaged weights belong to the result.
CALLBACKS_HARMFUL = ("callbacks.ema",)


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint got: optimizer steps, and whole epochs."""

    path: Path
    step: int
    epoch: int


@dataclass(frozen=True)
class RunContent:
    """What the decision looks at.

    Args:
        newest: newest readable checkpoint, or None.
        damaged: checkpoints newer than it that cannot be read, with the reason.
        before: configuration in that checkpoint.
        now: configuration asked for.
    """

    newest: Progress | None
    damaged: list[str]
    before: dict[str, Any]
    now: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """What to do, the checkpoint to start from, and lines to print (for `refuse` the reason)."""

    action: Literal["fresh", "continue", "finished", "refuse"]
    checkpoint: Path | None = None
    step: int = 0
    notes: list[str] = field(default_factory=list)


def decide(content: RunContent, allow_changes: bool = False) -> Decision:
    """Fresh, continue, finished or refuse."""
    notes = [f"ignoring damaged checkpoint: {line}" for line in content.damaged]
    newest = content.newest
    if newest is None:
        if content.damaged:
            return Decision("refuse", notes=[*notes, "no checkpoint of this run can be read; move the run away"])
        return Decision("fresh")
    changes = differences(content.before, content.now)
    harmful = [line for key, line in changes.items() if not _harmless(key, content)]
    if harmful and not allow_changes:
        advice = "use another RUN, or --allow_changes true to continue all the same"
        return Decision("refuse", notes=["the configuration changed: " + "; ".join(harmful) + f"; {advice}"])
    notes += [f"changed since this run began: {line}" for line in changes.values()]
    action = "finished" if _finished(newest, content.now.get("trainer") or {}) else "continue"
    return Decision(action, newest.path, newest.step, notes)


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys whose values differ, each with a readable line."""
    found = {}
    for key in sorted(before.keys() | now.keys()):
        name, old, new = f"{prefix}{key}", before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differences(old, new, f"{name}.")
        elif old != new:
            found[name] = f"{name} was {old!r}, is {new!r}"
    return found


def _harmless(key: str, content: RunContent) -> bool:
    decaying = ((content.now.get("model") or {}).get("init_args") or {}).get("optimizer") or {}
    if key in ("trainer.max_steps", "trainer.max_epochs"):
        return decaying.get("schedule") == "constant"
    if _under(key, TRAINER_HARMFUL) or _under(key, CALLBACKS_HARMFUL):
        return False
    return _under(key, HARMLESS)


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _finished(newest: Progress, trainer: dict[str, Any]) -> bool:
    max_steps, max_epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    steps_done = max_steps is not None and 0 <= max_steps <= newest.step
    epochs_done = max_epochs is not None and 0 <= max_epochs <= newest.epoch
    return steps_done or epochs_done
