"""Which jobs train a run: those that were submitted for it, and the task of an array that does."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from aim_lightning.cli.arguments import Arguments
from aim_lightning.cluster import job_registry
from aim_lightning.cluster.slurm_api import SlurmError, SlurmJobInfo, show
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class RunJob:
    """A job that SLURM still knows.

    Args:
        facts: what SLURM says.
        number: what scancel needs: that of a whole array for the run that it was submitted as, ARRAY_TASK for a task's.
        array: run directory of the array that it is a task of, seen from the task's own run.
    """

    facts: SlurmJobInfo
    number: str
    array: Path | None = None

    def __str__(self) -> str:
        return f"job {self.facts.id}" + (f" (a task of the array of {self.array})" if self.array else "")


def known(directory: RunDirectory) -> list[RunJob]:
    """What SLURM still knows of the jobs of a run, oldest first.

    Raises:
        UserError: SLURM cannot be asked.
    """
    try:
        own = [
            RunJob(_named(facts, job_id), job_id)
            for job_id in job_registry.jobs(directory.path)
            for facts in show(job_id)
        ]
        seen = {job.facts.id for job in own}
        return [*own, *(job for job in _tasks(directory) if job.facts.id not in seen)]
    except SlurmError as error:
        raise UserError(f"SLURM cannot be asked: {error}") from None


def _tasks(directory: RunDirectory) -> list[RunJob]:
    """Task N of an array that was submitted as RUN trains RUN-N."""
    match = re.fullmatch(r"(.+)-(\d+)", directory.run)
    array = directory.path.with_name(match[1]) if match else None
    if array is None or not (array / f"job-{int(match[2])}.yaml").exists():
        return []
    numbers = [f"{number}_{match[2]}" for number in job_registry.jobs(array) if "_" not in number]
    found = [(number, facts) for number in numbers for facts in show(number.partition("_")[0])]
    return [RunJob(_named(facts, number), number, array) for number, facts in found if facts.holds(int(match[2]))]


def _named(facts: SlurmJobInfo, number: str) -> SlurmJobInfo:
    """A task that waits is shown as all that wait with it: ARRAY_0-3."""
    return replace(facts, id=number) if "_" in number else facts


def script_of(given: Arguments) -> Path | None:
    """The job script that this process was started by: beside the configuration that was frozen with it."""
    frozen = [Path(path) for path in given.configs if re.fullmatch(r"job(-\d+)?\.yaml", Path(path).name)]
    scripts = [path.with_name("job.sbatch") for path in frozen if path.with_name("job.sbatch").exists()]
    return scripts[-1] if scripts else None


def resubmission(directory: RunDirectory, given: Arguments) -> str:
    """The command that submits the run of this process again, with all its options."""
    script = script_of(given)
    if script is None:
        return f"make slurm EXP={directory.experiment} RUN={directory.run}"
    task = re.fullmatch(rf"{re.escape(script.parent.name)}-(\d+)", directory.run)
    return f"sbatch {f'--array={task[1]} ' if task else ''}{script}"
