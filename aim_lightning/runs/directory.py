"""Paths in runs/EXPERIMENT/RUN/: they depend on the two names alone, never on time or job."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from aim_lightning.utils.errors import TransientError, UserError
from aim_lightning.utils.files import tolerate_disk_errors
from aim_lightning.utils.process import node_name

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
STEP = re.compile(r"step=(\d+)\.ckpt")


@dataclass(frozen=True)
class RunDirectory:
    """Where one run keeps everything.

    Raises:
        UserError: a name that is no plain directory name.
    """

    experiment: str
    run: str
    root: Path = Path("runs")

    def __post_init__(self) -> None:
        for what, name in (("experiment", self.experiment), ("run", self.run)):
            if not NAME.fullmatch(name):
                raise UserError(f"{what} is {name!r}; use letters, digits, '.', '_' and '-'")

    @property
    def path(self) -> Path:
        return Path(self.root) / self.experiment / self.run

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def lease(self) -> Path:
        return self.path / "lease.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoint_directory(self) -> Path:
        return self.path / "checkpoints"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, newest (highest step) first."""
        return list_checkpoints(self.path)

    @property
    def latest_step(self) -> int:
        """Of the newest checkpoint; 0 without one."""
        found = self.checkpoints()
        return step_of(found[0]) if found else 0

    def set_aside_newer(self, step: int, damaged: Collection[Path]) -> list[Path]:
        """Rename checkpoints after `step`, all of which must be `damaged`: they would count among those that are kept.

        Raises:
            TransientError: there is one that nobody has looked into, and nothing is renamed.
        """
        newer = [path for path in self.checkpoints() if step_of(path) > step]
        if unknown := [path for path in newer if path not in damaged]:
            late = "the shared file system showed this node an old state"
            raise TransientError(f"node {node_name()}: {unknown[0]} has appeared since the start; {late}")
        return [path.rename(path.with_name(f"{path.name}.damaged")) for path in newer]

    def remove_leftovers(self) -> list[Path]:
        """Remove what kills in the middle of a save left, and all damaged checkpoints but the newest.

        Only for who holds the lease: another training may be writing such a file.
        """
        half = [
            path for directory in (self.checkpoint_directory, self.path / "best") for path in directory.glob(".*.tmp")
        ]
        damaged = sorted(self.checkpoint_directory.glob("step=*.ckpt.damaged"))  # the digits have one width
        gone = [*half, *damaged[:-1]]
        for path in gone:
            with tolerate_disk_errors(path):
                path.unlink(missing_ok=True)
        return gone


def step_of(path: Path) -> int:
    """Optimizer steps in a checkpoint, from its file name."""
    return int(STEP.fullmatch(path.name)[1])


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Checkpoint files of a run directory, newest (highest step) first; temporary names are no checkpoints."""
    files = (Path(run_dir) / "checkpoints").glob("*.ckpt")
    return sorted((path for path in files if STEP.fullmatch(path.name)), key=step_of, reverse=True)


def missing_source(path: str | Path) -> str:
    """What to say of a source of weights that is not there."""
    return (
        f"{path} does not exist; give a weights file, a run directory or a Hugging Face directory "
        "(make weights-vq and make weights-aim fetch published ones)"
    )


def newest_checkpoint(source: str | Path) -> Path:
    """A checkpoint file itself, or the latest one of a run directory.

    Raises:
        UserError: there is no such run, or it has no checkpoint yet.
    """
    path = Path(source)
    if path.is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        train = f"make train EXP={path.parent.name} RUN={path.name}"
        raise UserError(f"{path} holds no checkpoint; train it first ({train})")
    return found[0]
