"""`aim-lightning slurm`: submit a run, show its jobs, cancel them; `started` and `ended` are for job.sbatch."""

import argparse
import sys
from dataclasses import replace
from datetime import datetime

from aim_lightning.cli.command import Command
from aim_lightning.cli.commands.config import run_directory
from aim_lightning.cli.common_options import add_allow_changes, boolean
from aim_lightning.cli.config import Config
from aim_lightning.cli.slurm.in_job import ended, started
from aim_lightning.cli.slurm.status import jobs_of
from aim_lightning.cli.slurm.submit import make_plan, write_configurations
from aim_lightning.cluster import job_registry
from aim_lightning.cluster.job_plan import JobPlan, check
from aim_lightning.cluster.sbatch_script import render
from aim_lightning.cluster.slurm_api import SlurmError, command
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text

HELP = "submit a run to SLURM, show or cancel its jobs"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    dry = "print the job script and submit nothing (default: false)"
    parser.add_argument("--dry", type=boolean, default=False, metavar="BOOL", help=dry)
    parser.add_argument("--seeds", metavar="LIST", help="submit an array with one run RUN-SEED per seed: 0-3 or 1,5,7")
    sweep = "submit an array with one run RUN-NUMBER per line of options in FILE"
    parser.add_argument("--sweep", metavar="FILE", help=sweep)
    parser.add_argument("--parallel", type=int, metavar="N", help="run at most N tasks of an array concurrently")
    add_allow_changes(parser)
    parser.add_argument("--code", type=int, default=0, help="exit code of srun, for `ended`")


def _submit(document: Config, options: argparse.Namespace) -> int:
    directory = run_directory(document)
    plan, documents = make_plan(document, options)
    notes = check(plan)
    script = render(plan)
    if options.dry:
        print(script, end="")
        for note in notes:
            print(f"# {note}", file=sys.stderr)
        return 0
    for note in notes:
        print(note)
    for run in dict.fromkeys([directory.run, *(task.run for task in plan.tasks)]):
        _refuse_double(replace(directory, run=str(run)))
    write_configurations(plan, documents)
    path = plan.directory / "job.sbatch"
    write_text(path, script)
    job_id = _ask("sbatch", "--parsable", str(path)).strip().split(";")[0]
    job_registry.add(directory.path, job_id)
    _say_submitted(plan, job_id, _site(options))
    return 0


def _site(options: argparse.Namespace) -> str:
    """The variable of make that names the file of the site, where it is not the usual one."""
    names = [path.stem for path in options.given.configs if path.parent.name == "cluster" and path.stem != "gpu"]
    return f" CLUSTER={names[-1]}" if names else ""


def _say_submitted(plan: JobPlan, job_id: str, site: str) -> None:
    experiment, _, name = plan.name.rpartition("/")
    runs = f", runs {plan.tasks[0].run} … {plan.tasks[-1].run}" if plan.is_array else ""
    log = plan.directory / (f"slurm-{job_id}_*.log" if plan.is_array else f"slurm-{job_id}.log")
    print(f"job {job_id}{runs}: {plan.nodes} nodes x {plan.devices} ranks, {plan.options.time} a job; log: {log}")
    names = f"EXP={experiment} RUN={name}{site}"
    print(f"next: make slurm-status {names}, or make slurm-cancel {names}")


def _refuse_double(directory: RunDirectory) -> None:
    alive = [job for job in jobs_of(directory) if job.info.waiting_or_running]
    if alive:
        raise UserError(
            f"{directory.path} has {alive[0]} already ({alive[0].info.state}); wait for it, or "
            f"make slurm-cancel EXP={directory.experiment} RUN={directory.run}"
        )


def _ask(*words: str) -> str:
    try:
        return command(*words)
    except SlurmError as error:
        raise UserError(f"{words[0]}: {error}") from None


def _status(document: Config, options: argparse.Namespace) -> int:
    directory = run_directory(document)
    jobs = jobs_of(directory)
    for job in jobs:
        info = job.info
        where = f" on {info.nodes}" if info.nodes else ""
        why = f" ({info.reason})" if info.reason != "None" else ""
        print(f"{job}: {info.state}{why}{where}, {info.run_time} of {info.time_limit}, {info.restarts} restarts")
    if not jobs and not job_registry.jobs(directory.path):
        print(f"{directory.path} has no jobs; make slurm EXP={directory.experiment} RUN={directory.run} submits one")
    for path in [directory.path, *sorted(directory.path.parent.glob(f"{directory.run}-*"))]:
        one = RunDirectory(directory.experiment, path.name, directory.root)
        if one.checkpoints():
            when = datetime.fromtimestamp(one.checkpoints()[0].stat().st_mtime).isoformat(" ", "seconds")
            done = ", results.json is there" if one.results.exists() else ""
            print(f"{one.path}: step {one.latest_step}, saved {when}{done}")
    return 0


def _cancel(document: Config, options: argparse.Namespace) -> int:
    directory = run_directory(document)
    jobs = {job.number: job for job in jobs_of(directory) if job.info.waiting_or_running}
    for job_id, job in jobs.items():
        job_registry.mark_cancelled(directory.path, job_id)  # first: it must not come back, whatever happens meanwhile
        _ask("scancel", job_id)
        one = job if job.array else f"job {job_id}"
        print(f"{one} is cancelled and will not come back; its checkpoints stay in {directory.path}")
    if not jobs:
        print(f"{directory.path} has no job that waits or runs")
    return 0


ACTIONS = {
    "submit": Command("submit a job", _submit, add_options),
    "status": Command("show the jobs of this run", _status, add_options),
    "cancel": Command("cancel the jobs of this run", _cancel, add_options),
    "started": Command("register the start of a job; job.sbatch calls it before srun", started, add_options),
    "ended": Command("requeue a job that failed; job.sbatch calls it after srun", ended, add_options),
}
