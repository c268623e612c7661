"""Inside a job: what job.sbatch calls before and after training, requeueing after a stop, and submitting again."""

import argparse
import re
import time
from pathlib import Path

from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.config import Config
from aim_lightning.cluster import job_registry, requeue, signals
from aim_lightning.cluster.signals import Stopped
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import tolerate_disk_errors
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import is_rank_zero

ENDINGS = {"requeue": "is requeued", "stay": "is not requeued", "refused": "could not be requeued"}


def started(config: Config, options: argparse.Namespace) -> int:
    """Register the start of this job and return 0, or an exit code that keeps it from training.

    Args:
        config: of the run.
        options: of the command line.

    Raises:
        UserError: too many starts without a new checkpoint.
    """
    directory, job = config.run_directory, _job()
    if job_registry.is_cancelled(directory.path.parent, job.id):
        print(f"job {job.id} was cancelled; it does not train again")
        return requeue.REFUSED
    frozen, number = frozen_config(options.arguments), job.id.split("_")[0]
    if frozen and number not in job_registry.jobs(frozen.parent):  # sbatch was called by hand
        with tolerate_disk_errors(frozen.parent / job_registry.JOBS):
            job_registry.add(frozen.parent, number)
    limit = config.cluster.max_starts_without_progress
    step = directory.latest_step
    starts = job_registry.register_start(directory.path, job, step, limit)
    again = f", start {starts} of {limit} without a new checkpoint" if starts > 1 else ""
    print(f"job {job.id} starts on {job.node} (restart {job.starts}) at step {step}{again}", flush=True)
    return 0


def ended(config: Config, options: argparse.Namespace) -> int:
    """Requeue a job that training did not requeue itself; return 0, or the exit code for job.sbatch to act on.

    Args:
        config: of the run.
        options: of the command line; `code` is the exit code of srun.
    """
    directory, job = config.run_directory, _job()
    recorded = job_registry.recorded_exit(directory.path, job)
    code = options.code if recorded is None else recorded
    cause = requeue.cause_of(recorded, options.code)
    if cause is None:
        return 0
    # SLURM does not show on which side of a cancellation the processes ended, the registry does.
    if job_registry.is_cancelled(directory.path.parent, job.id):
        print(f"job {job.id} was cancelled; it is not requeued")
        return 0
    decision = requeue.act(cause, job, config.cluster.requeue_on_crash)
    if decision.action == "already":
        return 0
    if decision.action == "outside":  # no scontrol in this container: job.sbatch requeues it
        return requeue.EXITS_OUTSIDE[cause]
    ending = ENDINGS[decision.action]
    print(f"training ended with exit code {code}; job {job.id} {ending}: {decision.reason}", flush=True)
    return 0


def requeue_after(stop: Stopped, directory: RunDirectory, arguments: Arguments) -> int:
    """Requeue the job after a signal stopped training between two steps, where it may be; return the exit code.

    Args:
        stop: the exception of the stop.
        directory: of the run.
        arguments: the command line of this process, which contains the path of the job script.
    """
    if not is_rank_zero():
        return 0  # another code would make srun end rank 0 while it asks SLURM
    kept, job = _kept(stop), Job.current()
    if job is None or stop.code == signals.INT:
        job_registry.record_exit(directory.path, job, signals.EXITS[stop.code])  # the code of a final end
        log(f"stopped by {signals.NAMES[stop.code]}, {kept}; the same command continues {directory.path}")
        return signals.EXITS[stop.code]
    stopped_at, cause = time.time(), "warning" if stop.code == signals.USR1 else "sigterm"
    decision = requeue.act(cause, job)
    again, reason = resubmission(directory, arguments), decision.reason
    continues = requeue.CONTINUES, f"job {job.id} is requeued: {reason}"
    refused = f"SLURM did not requeue job {job.id}: {reason}; the checkpoint is kept, submit again: {again}"
    code, ending = {
        "requeue": continues,
        "already": continues,
        "outside": (requeue.EXITS_OUTSIDE[cause], f"job {job.id} is left to job.sbatch: {reason}"),
        "refused": (requeue.REFUSED, refused),
        "stay": (signals.EXITS[stop.code], f"job {job.id} is not requeued by itself: {reason}; to go on: {again}"),
    }[decision.action]
    if decision.action not in ("refused", "stay"):
        job_registry.record_timings(directory.path, stopped_at=stopped_at)
    job_registry.record_exit(directory.path, job, code)
    log(f"{kept}; {ending}")
    return code


def _kept(stop: Stopped) -> str:
    """Describe where the next start continues."""
    if stop.step == 0:
        return "no step was done yet, the next start begins at step 0"
    if stop.saved:
        return f"step {stop.step} is in a checkpoint"
    return f"no checkpoint of step {stop.step} was written, the next start goes back to the one before"


def _job() -> Job:
    job = Job.current()
    if job is None:
        raise UserError("this is no SLURM job; `started` and `ended` are called by job.sbatch")
    return job


def frozen_config(arguments: Arguments) -> Path | None:
    """Return the configuration next to the job script that started this process, which was written with it."""
    paths = [Path(path) for path in arguments.configs if re.fullmatch(r"job(-\d+)?\.yaml", Path(path).name)]
    return next((path for path in reversed(paths) if path.with_name("job.sbatch").exists()), None)


def resubmission(directory: RunDirectory, arguments: Arguments) -> str:
    """Return the command that submits this run again with all its options.

    Args:
        directory: of the run.
        arguments: the command line of this process.
    """
    frozen = frozen_config(arguments)
    if frozen is None:
        return f"make slurm {directory.variables}"
    index = frozen.stem.partition("-")[2]
    return f"sbatch {f'--array={index} ' if index else ''}{frozen.with_name('job.sbatch')}"
