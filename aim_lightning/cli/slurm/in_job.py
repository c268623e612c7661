"""What job.sbatch asks before and after training: `slurm started` and `slurm ended`."""

import argparse

from aim_lightning.cli.commands.config import run_directory
from aim_lightning.cli.config import Config
from aim_lightning.cli.slurm.status import script_of
from aim_lightning.cluster import exit_record, job_registry, requeue, restarts
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import tolerate_disk_errors


def started(document: Config, options: argparse.Namespace) -> int:
    """First line of job.sbatch: may this job start (again)?"""
    directory, job = run_directory(document), _job()
    if job_registry.is_cancelled(directory.path.parent, job.id):
        print(f"job {job.id} was cancelled; it does not train again")
        return requeue.REFUSED
    _remember(job, options)
    limit = ClusterOptions(**document.values["cluster"]).max_starts_without_progress
    step = directory.latest_step
    record = restarts.register(directory.path, job, step, limit)
    again = f", start {record['starts']} of {limit} without a new checkpoint" if record["starts"] > 1 else ""
    print(f"job {job.id} starts on {job.node} (restart {job.starts}) at step {step}{again}", flush=True)
    return 0


def _remember(job: Job, options: argparse.Namespace) -> None:
    """A job that somebody gave to sbatch by hand is one of this run's jobs too."""
    script, number = script_of(options.given), job.id.split("_")[0]
    if script and number not in job_registry.jobs(script.parent):
        with tolerate_disk_errors(script.parent / job_registry.FILE):
            job_registry.add(script.parent, number)


def ended(document: Config, options: argparse.Namespace) -> int:
    """Last line of job.sbatch: bring back what training could not bring back itself."""
    directory, job = run_directory(document), _job()
    told = exit_record.read(directory.path, job)
    code = options.code if told is None else told
    cause = requeue.cause_of(told, options.code)
    if cause is None:
        return 0
    if job_registry.is_cancelled(directory.path.parent, job.id):
        print(f"job {job.id} was cancelled; it does not come back")
        return 0
    verdict = requeue.act(cause, job, ClusterOptions(**document.values["cluster"]).requeue_on_crash)
    if verdict.action == "already":
        return 0
    if verdict.action == "outside":  # job.sbatch asks the same question in its own words
        return requeue.EXITS_OUTSIDE[cause]
    word = {"requeue": "is requeued", "stay": "is not requeued", "refused": "could not be requeued"}[verdict.action]
    print(f"training ended with exit code {code}; job {job.id} {word}: {verdict.why}", flush=True)
    return 0


def _job() -> Job:
    job = Job.current()
    if job is None:
        raise UserError("there is no SLURM job here: `started` and `ended` are for job.sbatch")
    return job
