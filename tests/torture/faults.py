"""Faults of a training: hooks that are installed in a forked process before its training starts."""

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
    """A fault and its moment.

    Args:
        kind: a signal's name, `hang`, `full disk`, or `flip`/`truncate` (SIGKILL, then a damaged checkpoint).
        phase: one of PHASES.
        step: the first optimizer step at which it may happen.
        ranks: the ranks that it hits.
        seconds: of the phase `clock`, after the start.
    """

    kind: str
    phase: str
    step: int
    ranks: tuple[int, ...]
    seconds: float = 0.0

    def __str__(self) -> str:
        clock = f"{self.seconds:.2f} s after the start"
        moment = clock if self.phase == "clock" else f"{self.phase}, from step {self.step}"
        return f"{self.kind} on rank {', '.join(map(str, self.ranks))}: {moment}"


def arm(fault: Fault, rank: int, marks: Path) -> None:
    """Install the fault in this process; it creates a file in `marks` when it happens."""
    from aim_lightning.callbacks.training.checkpoints import Checkpoints
    from aim_lightning.callbacks.training.ema import EMA
    from aim_lightning.callbacks.training.resume_state import RunCheckpointIO
    from aim_lightning.checkpoint import io as checkpoint_io
    from aim_lightning.modules.aim import AiMModule

    if fault.kind == "full disk":
        _fill_disk(marks, fault, rank)
        return
    if rank not in fault.ranks or fault.phase == "clock":
        return
    strike = _once(marks / f"struck-{rank}", fault.kind)

    def strike_at_step(owner, *arguments) -> None:
        trainer = owner.trainer if isinstance(owner, AiMModule) else arguments[0]
        if trainer.global_step >= fault.step:
            strike()

    hooks = {
        "validation": (AiMModule, "validation_step", strike_at_step),
        "forward": (AiMModule, "training_step", strike_at_step),
        "clipping": (AiMModule, "configure_gradient_clipping", strike_at_step),
        "average": (EMA, "on_train_batch_end", strike_at_step),
        "restore": (RunCheckpointIO, "load_checkpoint", lambda *_: strike()),
        "before the rename": (checkpoint_io, "verify_archive", lambda *_: strike()),
        "before older ones are removed": (Checkpoints, "_remove_others", lambda *_: strike()),
    }
    if fault.phase == "half a checkpoint":
        _interrupt_saving(strike)
    else:
        _before(*hooks[fault.phase])


def _once(mark: Path, kind: str) -> Callable[[], None]:
    """Return the function that hangs or signals this process at its first call, and creates the mark."""

    def strike() -> None:
        if mark.exists():
            return
        mark.touch()
        if kind == "hang":
            time.sleep(3600)
        os.kill(os.getpid(), SIGNALS.get(kind, signal.SIGKILL))

    return strike


def _before(owner, name: str, act: Callable) -> None:
    """Call `act` with the arguments of a method, or of a module's function, before each of its calls."""
    original = getattr(owner, name)

    def patched(*arguments, **options):
        act(*arguments)
        return original(*arguments, **options)

    setattr(owner, name, patched)


def _interrupt_saving(strike: Callable[[], None], error: OSError | None = None) -> None:
    """Make torch.save write half of a checkpoint, call `strike`, then write the rest or raise the error."""
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


def _fill_disk(marks: Path, fault: Fault, rank: int) -> None:
    """Make the disk full at the next checkpoint; some steps later the process is killed."""
    from aim_lightning.modules.aim import AiMModule

    full, steps = marks / "full", []
    _interrupt_saving(full.touch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if rank in fault.ranks:
        strike = _once(marks / f"struck-{rank}", "SIGKILL")
        _before(AiMModule, "training_step", lambda *_: full.exists() and (steps.append(1), len(steps) > 3 and strike()))
