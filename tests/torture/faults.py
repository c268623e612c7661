"""What is done to a training, and when: hooks that a test hangs into a forked process before training starts there."""

import errno
import io
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
# Moments inside training that a hook can hit; the others are moments of the clock, or come after the end.
STEP_PHASES = ("forward", "clipping", "average")
SAVE_PHASES = ("half a checkpoint", "before the rename", "before older ones are removed")
PHASES = ("clock", "restore", "validation", *STEP_PHASES, *SAVE_PHASES)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Args:
        kind: a signal's name, `hang`, `full disk`, or `flip`/`truncate` (SIGKILL, then the newest checkpoint is hurt).
        phase: when; one of PHASES.
        step: from which optimizer step on.
        ranks: whom it hits.
        seconds: of the phase `clock`, after the start.
    """

    kind: str
    phase: str
    step: int
    ranks: tuple[int, ...]
    seconds: float = 0.0

    def __str__(self) -> str:
        when = (
            f"{self.seconds:.2f} s after the start" if self.phase == "clock" else f"{self.phase}, from step {self.step}"
        )
        return f"{self.kind} on rank {', '.join(map(str, self.ranks))}: {when}"


def arm(fault: Fault, rank: int, marks: Path) -> None:
    """Hang the fault into this process; `marks` gets a file when it strikes."""
    from aim_lightning.callbacks.training.checkpoints import Checkpoints
    from aim_lightning.callbacks.training.ema import EMA
    from aim_lightning.callbacks.training.resume_state import RunCheckpointIO
    from aim_lightning.modules.aim import AiMModule

    if fault.kind == "full disk":
        _fill_disk(marks, fault, rank)
        return
    if rank not in fault.ranks or fault.phase == "clock":
        return
    strike = _once(marks / f"struck-{rank}", _action(fault.kind))

    def reached(module) -> bool:
        return module.trainer.global_step >= fault.step

    if fault.phase == "restore":
        _before(RunCheckpointIO, "load_checkpoint", lambda *_: strike())
    elif fault.phase == "validation":
        _before(AiMModule, "validation_step", lambda module, *_: reached(module) and strike())
    elif fault.phase == "forward":
        _before(AiMModule, "training_step", lambda module, *_: reached(module) and strike())
    elif fault.phase == "clipping":
        _before(AiMModule, "configure_gradient_clipping", lambda module, *_: reached(module) and strike())
    elif fault.phase == "average":
        _before(EMA, "on_train_batch_end", lambda _, trainer, module, *__: reached(module) and strike())
    elif fault.phase == "half a checkpoint":
        _in_the_middle_of_saving(strike)
    elif fault.phase == "before the rename":
        _before_verification(strike)
    elif fault.phase == "before older ones are removed":
        _before(Checkpoints, "_remove_others", lambda *_: strike())


def _action(kind: str) -> Callable[[], None]:
    if kind == "hang":
        return lambda: time.sleep(3600)
    number = SIGNALS.get(kind, signal.SIGKILL)
    return lambda: os.kill(os.getpid(), number)


def _once(mark: Path, action: Callable[[], None]) -> Callable[[], None]:
    def strike() -> None:
        if not mark.exists():
            mark.touch()
            action()

    return strike


def _before(owner, name: str, act: Callable) -> None:
    original = getattr(owner, name)

    def patched(self, *args, **options):
        act(self, *args)
        return original(self, *args, **options)

    setattr(owner, name, patched)


def _in_the_middle_of_saving(strike: Callable[[], None], error: OSError | None = None) -> None:
    """torch.save writes half of the file, then it happens, then the rest (or an error)."""
    import torch

    save = torch.save

    def patched(content, file, **options) -> None:
        if not isinstance(content, dict) or "format" not in content:  # torch's own use, for objects between ranks
            return save(content, file, **options)
        buffer = io.BytesIO()
        save(content, buffer)
        data = buffer.getvalue()
        file.write(data[: len(data) // 2])
        file.flush()
        strike()
        if error:
            raise error
        file.write(data[len(data) // 2 :])
        return None

    torch.save = patched


def _before_verification(strike: Callable[[], None]) -> None:
    from aim_lightning.checkpoint import io

    original = io.drop_from_cache

    def patched(path) -> None:
        original(path)
        strike()

    io.drop_from_cache = patched


def _fill_disk(marks: Path, fault: Fault, rank: int) -> None:
    """The next checkpoint finds the disk full; some steps later the process is killed."""
    from aim_lightning.modules.aim import AiMModule

    full = marks / "full"
    _in_the_middle_of_saving(full.touch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if rank in fault.ranks:
        strike = _once(marks / f"struck-{rank}", _action("SIGKILL"))
        later = []
        _before(AiMModule, "training_step", lambda *_: full.exists() and (later.append(1), len(later) > 3 and strike()))
