"""Paths in runs/EXPERIMENT/RUN/; they depend on the two names only, never on time or job."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from aim_lightning.utils.errors import TransientError, UserError
from aim_lightning.utils.files import tolerate_disk_errors
from aim_lightning.utils.process import node_name

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # file systems take up to 255 bytes
STEP = re.compile(r"step=(\d+)\.ckpt")


@dataclass(frozen=True)
class RunDirectory:
    """Directory of one run, with the paths of its files.

    Raises:
        UserError: a name is not a plain directory name.
    """

    experiment: str
    run: str
    root: Path = Path("runs")

    def __post_init__(self) -> None:
        for key, name in (("experiment", self.experiment), ("run", self.run)):
            if not NAME.fullmatch(name):
                raise UserError(f"{key} is {name!r}; use letters, digits, '.', '_' and '-', at most 200")

    path = property(lambda self: Path(self.root) / self.experiment / self.run)
    config = property(lambda self: self.path / "config.yaml")
    results = property(lambda self: self.path / "results.json")
    lease = property(lambda self: self.path / "lease.json")
    history = property(lambda self: self.path / "history.jsonl")
    samples = property(lambda self: self.path / "samples")
    variables = property(lambda self: f"EXP={self.experiment} RUN={self.run}")  # that select the run in `make`
    checkpoint_directory = property(lambda self: self.path / "checkpoints")

    def checkpoints(self) -> list[Path]:
        """List the checkpoint files, newest (highest step) first."""
        return list_checkpoints(self.path)

    @property
    def latest_step(self) -> int:
        """Return the step of the newest checkpoint; 0 without one."""
        return next(map(step_of, self.checkpoints()), 0)

    def set_aside_newer(self, step: int, damaged: Collection[Path]) -> list[Path]:
        """Rename the damaged checkpoints after `step`, so that they do not count among the kept ones.

        Args:
            step: optimizer steps of the checkpoint to continue from.
            damaged: checkpoints that failed verification; must contain all newer ones.

        Raises:
            TransientError: a newer checkpoint was not verified; nothing is renamed.
        """
        newer = [path for path in self.checkpoints() if step_of(path) > step]
        if unknown := [path for path in newer if path not in damaged]:
            # A node's cache of a shared file system may be old; renaming an intact checkpoint would lose steps.
            raise TransientError(f"node {node_name()}: {unknown[0]} has appeared since the start; start again")
        return [path.rename(path.with_name(f"{path.name}.damaged")) for path in newer]

    def remove_leftovers(self) -> list[Path]:
        """Remove temporary files of interrupted saves, and all damaged checkpoints but the newest.

        Call it only under the lease: another training may be writing such a file.

        Returns:
            the removed paths.
        """
        temporary = [*self.checkpoint_directory.glob(".*.tmp"), *(self.path / "best").glob(".*.tmp")]
        damaged = sorted(self.checkpoint_directory.glob("step=*.ckpt.damaged"))  # steps are padded: sorted by step
        removed = [*temporary, *damaged[:-1]]
        for path in removed:
            with tolerate_disk_errors(path):
                path.unlink(missing_ok=True)
        return removed


def step_of(path: Path) -> int:
    """Return the optimizer steps of a checkpoint, from its file name."""
    return int(STEP.fullmatch(path.name)[1])


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """List the checkpoint files of a run directory, newest (highest step) first, without temporary files."""
    # Temporary files start with a dot and damaged ones end with .damaged, so the pattern skips both.
    files = (Path(run_dir) / "checkpoints").glob("*.ckpt")
    return sorted((path for path in files if STEP.fullmatch(path.name)), key=step_of, reverse=True)


def missing_source(path: str | Path) -> str:
    """Return the error message for a source of weights that does not exist."""
    published = "make weights-vq and make weights-aim download published ones"
    return f"{path} does not exist; give a weights file, a run directory or a Hugging Face directory ({published})"


def newest_checkpoint(source: str | Path) -> Path:
    """Return a checkpoint file itself, or the newest one of a run directory.

    Raises:
        UserError: the run does not exist, or it has no checkpoint yet.
    """
    path = Path(source)
    if path.is_file():
        return path
    checkpoints = list_checkpoints(path)
    if not checkpoints:
        train = f"make train EXP={path.parent.name} RUN={path.name}"
        raise UserError(f"{path} holds no checkpoint; train it first ({train}), or import weights")
    return checkpoints[0]
