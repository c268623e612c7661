"""The jobs that train a run: those submitted for it, and the task of an array that trains it."""

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
    """A job of a run that SLURM still has a record of.

    Args:
        info: SLURM's record.
        number: the argument of scancel: the number of a job or of a whole array, or ARRAY_TASK.
        array: run directory of the array that the job is a task of; None for the run that was submitted.
    """

    info: SlurmJobInfo
    number: str
    array: Path | None = None

    def __str__(self) -> str:
        return f"job {self.info.id}" + (f" (a task of the array of {self.array})" if self.array else "")


def jobs_of(directory: RunDirectory) -> list[RunJob]:
    """Return the jobs of a run that SLURM has records of, oldest first.

    Raises:
        UserError: SLURM does not answer.
    """
    try:
        submitted = [
            RunJob(_with_number(info, number), number)
            for number in job_registry.jobs(directory.path)
            for info in show(number)
        ]
        ids = {job.info.id for job in submitted}
        return [*submitted, *(job for job in _tasks(directory) if job.info.id not in ids)]
    except SlurmError as error:
        raise UserError(f"SLURM cannot be asked: {error}") from None


def _tasks(directory: RunDirectory) -> list[RunJob]:
    """Return the jobs of task N of an array that was submitted as RUN, where the run is RUN-N."""
    match = re.fullmatch(r"(.+)-(\d+)", directory.run)
    array = directory.path.with_name(match[1]) if match else None
    if array is None or not (array / f"job-{int(match[2])}.yaml").exists():
        return []
    numbers = [f"{number}_{match[2]}" for number in job_registry.jobs(array) if "_" not in number]
    # SLURM shows waiting tasks as one record of the array, so that the whole array is read.
    records = [(number, info) for number in numbers for info in show(number.partition("_")[0])]
    return [RunJob(_with_number(info, number), number, array) for number, info in records if info.holds(int(match[2]))]


def _with_number(info: SlurmJobInfo, number: str) -> SlurmJobInfo:
    """Replace the number of a waiting task, which SLURM shows as that of all waiting tasks: ARRAY_0-3."""
    return replace(info, id=number) if "_" in number else info


def script_of(arguments: Arguments) -> Path | None:
    """Return the job script that started this process: it is next to the configuration written with it."""
    frozen = [Path(path) for path in arguments.configs if re.fullmatch(r"job(-\d+)?\.yaml", Path(path).name)]
    scripts = [path.with_name("job.sbatch") for path in frozen if path.with_name("job.sbatch").exists()]
    return scripts[-1] if scripts else None


def resubmission(directory: RunDirectory, arguments: Arguments) -> str:
    """Return the command that submits this run again with all its options.

    Args:
        directory: of the run.
        arguments: the command line of this process.
    """
    script = script_of(arguments)
    if script is None:
        return f"make slurm EXP={directory.experiment} RUN={directory.run}"
    task = re.fullmatch(rf"{re.escape(script.parent.name)}-(\d+)", directory.run)
    return f"sbatch {f'--array={task[1]} ' if task else ''}{script}"
