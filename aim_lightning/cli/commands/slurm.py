"""`aim-lightning slurm`: submit a run, show its jobs, cancel them; `started` and `ended` are for job.sbatch."""

import argparse
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from aim_lightning.cli.common_options import add_shared, flag, number
from aim_lightning.cli.config import Config
from aim_lightning.cli.registry import Command
from aim_lightning.cli.slurm.in_job import ended, started
from aim_lightning.cli.slurm.submit import make_plan, task_configs
from aim_lightning.cluster import job_registry
from aim_lightning.cluster.job_plan import check
from aim_lightning.cluster.sbatch_script import render
from aim_lightning.cluster.slurm_api import SlurmError, SlurmJobInfo, command, show
from aim_lightning.config.yaml import dump
from aim_lightning.runs.directory import NAME, RunDirectory
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text
from aim_lightning.utils.logging import log_next

HELP = "submit a run to SLURM, show or cancel its jobs"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--dry", **flag("print the job script and submit nothing"))
    parser.add_argument("--seeds", metavar="LIST", help="submit an array with one run RUN-SEED per seed: 0-3 or 1,5,7")
    sweep = "submit an array with one run RUN-NUMBER per line of options in FILE"
    parser.add_argument("--sweep", metavar="FILE", help=sweep)
    parser.add_argument("--parallel", type=number(int, 1), metavar="N", help="largest number of concurrent array tasks")
    add_shared(parser, "allow_changes")
    parser.add_argument("--code", type=number(int), default=0, help="exit code of srun, for `ended`")


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

    @property
    def name(self) -> str:
        """Return a number that identifies only this job; a record of waiting tasks covers several, ARRAY_0-3."""
        return self.number if "_" in self.number else self.info.id

    def __str__(self) -> str:
        return f"job {self.name}" + (f" (a task of the array of {self.array})" if self.array else "")


def jobs_of(directory: RunDirectory) -> list[RunJob]:
    """Return the jobs of a run that SLURM has records of, oldest first.

    Raises:
        UserError: the query of SLURM failed.
    """
    try:
        jobs = [RunJob(info, number) for number in job_registry.jobs(directory.path) for info in show(number)]
        names = {job.name for job in jobs}
        return jobs + [job for job in _tasks(directory) if job.name not in names]
    except SlurmError as error:
        raise UserError(f"{error}; try again") from None


def _tasks(directory: RunDirectory) -> list[RunJob]:
    """Return the jobs of a run that is a task of an array."""
    result = []
    for array, index in _array_tasks(directory):
        numbers = [f"{number}_{index}" for number in job_registry.jobs(array) if "_" not in number]
        # SLURM shows waiting tasks as one record of the array, so that the whole array is read.
        records = [(number, info) for number in numbers for info in show(number.partition("_")[0])]
        result += [RunJob(info, number, array) for number, info in records if info.holds(index)]
    return result


def _array_tasks(directory: RunDirectory) -> list[tuple[Path, int]]:
    """Return directory and index of the arrays with this run: RUN-INDEX of RUN, or SUITE-VARIATION-SEED of SUITE."""
    parts = directory.run.split("-")
    arrays = [directory.path.with_name("-".join(parts[:count])) for count in range(len(parts) - 1, 0, -1)]
    # Only suites give their tasks other numbers than those in the names: arrays may have thousands of files.
    files = [path for array in arrays[:1] for path in array.glob(f"job-{parts[-1]}.yaml")]
    files += [path for array in arrays[1:] for path in array.glob("job-*.yaml")]
    line = f"\n{dump({'run': directory.run})}"
    tasks = [path for path in files if line in "\n" + path.read_text(encoding="utf-8")]
    return [(path.parent, int(path.stem.removeprefix("job-"))) for path in tasks]


def _submit(config: Config, options: argparse.Namespace) -> int:
    return submit(config, task_configs(config, options), options)


def submit(config: Config, configs: dict[int | None, Config], options: argparse.Namespace) -> int:
    """Submit a job, or print its script.

    Args:
        config: of the run, or of the array, whose directory is that of its run.
        configs: of the tasks by index of the array; the index is None without an array.
        options: dry, parallel, allow_changes and arguments of the command line.

    Raises:
        UserError: the job could not work, or one of its runs has a job already.
    """
    directory, plan = config.run_directory, make_plan(config, configs, options)
    notes, script = check(plan), render(plan)
    if options.dry:
        print(script, end="")
        print(*(f"# {note}" for note in notes), sep="\n", file=sys.stderr)
        return 0
    print(*notes, sep="\n")
    for run in dict.fromkeys([directory.run, *(task.run for task in plan.tasks)]):
        _refuse_second_job(replace(directory, run=str(run)))
    for task in plan.tasks:  # later edits must not change a waiting job
        write_text(plan.directory / task.file, dump(configs[task.index].values))
    path = plan.directory / "job.sbatch"
    write_text(path, script)
    # --parsable prints NUMBER, or NUMBER;CLUSTER on a federation.
    job_id = command("sbatch", "--parsable", str(path)).strip().split(";")[0]
    job_registry.add(directory.path, job_id)
    runs = f", runs {plan.tasks[0].run} … {plan.tasks[-1].run}" if plan.is_array else ""
    log = plan.directory / (f"slurm-{job_id}_*.log" if plan.is_array else f"slurm-{job_id}.log")
    print(f"job {job_id}{runs}: {plan.nodes} nodes x {plan.devices} ranks, {plan.options.time} per job; log: {log}")
    # The variable of make that names the site's file, if it is not the default.
    sites = [path.stem for path in options.arguments.configs if path.parent.name == "cluster" and path.stem != "gpu"]
    names = directory.variables + (f" CLUSTER={sites[-1]}" if sites else "")
    log_next(f"make slurm-status {names}, or make slurm-cancel {names}")
    return 0


def _refuse_second_job(directory: RunDirectory) -> None:
    if job := next((job for job in jobs_of(directory) if job.info.waiting_or_running), None):
        fact = f"{directory.path} has {job} already ({job.info.state})"
        raise UserError(f"{fact}; wait for it, or make slurm-cancel {directory.variables}")


def _status(config: Config, options: argparse.Namespace) -> int:
    directory = config.run_directory
    jobs = jobs_of(directory)
    for job in jobs:
        info = job.info
        nodes = f" on {info.nodes}" if info.nodes else ""
        reason = f" ({info.reason})" if info.reason != "None" else ""
        print(f"{job}: {info.state}{reason}{nodes}, {info.run_time} of {info.time_limit}, {info.restarts} restarts")
    if not jobs and not job_registry.jobs(directory.path):
        print(f"{directory.path} has no jobs; make slurm {directory.variables} submits one")
    tasks = sorted(path for path in directory.path.parent.glob(f"{directory.run}-*") if NAME.fullmatch(path.name))
    for path in (directory.path, *tasks):
        run = replace(directory, run=path.name)
        if checkpoints := run.checkpoints():
            # A link to storage that is not mounted has only its own time.
            seconds = checkpoints[0].stat(follow_symlinks=checkpoints[0].exists()).st_mtime
            saved = datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
            finished = ", results.json exists" if run.results.exists() else ""
            print(f"{run.path}: step {run.latest_step}, saved {saved}{finished}")
    return 0


def _cancel(config: Config, options: argparse.Namespace) -> int:
    directory = config.run_directory
    jobs = {job.number: job for job in jobs_of(directory) if job.info.waiting_or_running}
    for job_id, job in jobs.items():
        job_registry.mark_cancelled(directory.path, job_id)  # first: it must not be requeued in the meantime
        command("scancel", job_id)
        name = job if job.array else f"job {job_id}"
        print(f"{name} is cancelled and will not be requeued; its checkpoints stay in {directory.path}")
    if not jobs:
        print(f"{directory.path} has no waiting or running job")
    return 0


ACTIONS = {
    "submit": Command("submit a job", _submit, add_options),
    "status": Command("show the jobs of this run", _status, add_options),
    "cancel": Command("cancel the jobs of this run", _cancel, add_options),
    "started": Command("register the start of a job; job.sbatch calls it before srun", started, add_options),
    "ended": Command("requeue a job that failed; job.sbatch calls it after srun", ended, add_options),
}
