"""`aim-lightning slurm`: submit a run, show its jobs, cancel them; `started` and `ended` are for job.sbatch."""

import argparse
import sys
from datetime import datetime

from aim_lightning.cli.config import run_directory
from aim_lightning.cli.slurm_plan import make_plan, write_configurations
from aim_lightning.cluster import outcome, records, requeue, restarts
from aim_lightning.cluster.job import Facts, Job, SlurmError, command, show
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.cluster.plan import JobPlan, check
from aim_lightning.cluster.script import render
from aim_lightning.config import Document
from aim_lightning.runs.directory import STEP, RunDirectory
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text


def run(document: Document, options: argparse.Namespace) -> int:
    """Returns the exit code."""
    actions = {"submit": _submit, "status": _status, "cancel": _cancel, "started": _started, "ended": _ended}
    return actions[options.action](document, options)


def _submit(document: Document, options: argparse.Namespace) -> int:
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
    _refuse_double(directory)
    write_configurations(plan, documents)
    path = plan.folder / "job.sbatch"
    write_text(path, script)
    job_id = _ask("sbatch", "--parsable", str(path)).strip().split(";")[0]
    records.add(directory.path, job_id)
    _say_submitted(plan, job_id)
    return 0


def _say_submitted(plan: JobPlan, job_id: str) -> None:
    experiment, _, name = plan.name.rpartition("/")
    runs = f", runs {plan.tasks[0].run} … {plan.tasks[-1].run}" if plan.is_array else ""
    log = plan.folder / (f"slurm-{job_id}_*.log" if plan.is_array else f"slurm-{job_id}.log")
    print(f"job {job_id}{runs}: {plan.nodes} nodes x {plan.devices} ranks, {plan.options.time} a job; log: {log}")
    print(f"next: make slurm-status EXP={experiment} RUN={name}, or make slurm-cancel EXP={experiment} RUN={name}")


def _refuse_double(directory: RunDirectory) -> None:
    alive = [facts for facts in _known(directory) if facts.waiting_or_running]
    if alive:
        raise UserError(
            f"{directory.path} has job {alive[0].id} already ({alive[0].state}); wait for it, or "
            f"make slurm-cancel EXP={directory.experiment} RUN={directory.run}"
        )


def _known(directory: RunDirectory) -> list[Facts]:
    """What SLURM still knows of the jobs of a run, oldest first."""
    try:
        return [facts for job_id in records.jobs(directory.path) for facts in show(job_id)]
    except SlurmError as error:
        raise UserError(f"SLURM cannot be asked: {error}") from None


def _ask(*words: str) -> str:
    try:
        return command(*words)
    except SlurmError as error:
        raise UserError(f"{words[0]}: {error}") from None


def _status(document: Document, options: argparse.Namespace) -> int:
    directory = run_directory(document)
    for facts in _known(directory):
        where = f" on {facts.nodes}" if facts.nodes else ""
        why = f" ({facts.reason})" if facts.reason != "None" else ""
        print(
            f"job {facts.id}: {facts.state}{why}{where}, {facts.run_time} of {facts.time_limit}, "
            f"{facts.restarts} restarts"
        )
    jobs = records.jobs(directory.path)
    if not jobs:
        print(f"{directory.path} has no jobs; make slurm EXP={directory.experiment} RUN={directory.run} submits one")
    for folder in [directory.path, *sorted(directory.path.parent.glob(f"{directory.run}-*"))]:
        one = RunDirectory(directory.experiment, folder.name, directory.root)
        if one.checkpoints():
            when = datetime.fromtimestamp(one.checkpoints()[0].stat().st_mtime).isoformat(" ", "seconds")
            done = ", results.json is there" if one.results.exists() else ""
            print(f"{one.path}: step {_step(one)}, saved {when}{done}")
    return 0


def _cancel(document: Document, options: argparse.Namespace) -> int:
    directory = run_directory(document)
    jobs = sorted({facts.id.split("_")[0] for facts in _known(directory) if facts.waiting_or_running})
    for job_id in jobs:
        records.mark_cancelled(directory.path, job_id)  # first: it must not come back, whatever happens meanwhile
        _ask("scancel", job_id)
        print(f"job {job_id} is cancelled and will not come back; its checkpoints stay in {directory.path}")
    if not jobs:
        print(f"{directory.path} has no job that waits or runs")
    return 0


def _started(document: Document, options: argparse.Namespace) -> int:
    """First line of job.sbatch: may this job start (again)?"""
    directory, job = run_directory(document), _job()
    if records.is_cancelled(directory.path.parent, job.id):
        print(f"job {job.id} was cancelled; it does not train again")
        return requeue.REFUSED
    limit = ClusterOptions(**document.values["cluster"]).max_starts_without_progress
    step = _step(directory)
    record = restarts.register(directory.path, job, step, limit)
    again = f", start {record['starts']} of {limit} without a new checkpoint" if record["starts"] > 1 else ""
    print(f"job {job.id} starts on {job.node} (restart {job.starts}) at step {step}{again}", flush=True)
    return 0


def _ended(document: Document, options: argparse.Namespace) -> int:
    """Last line of job.sbatch: bring back what training could not bring back itself."""
    directory, job = run_directory(document), _job()
    told = outcome.read(directory.path, job)
    code = options.code if told is None else told
    cause = requeue.cause_of(told, options.code)
    if cause is None:
        return 0
    if records.is_cancelled(directory.path.parent, job.id):
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


def _step(directory: RunDirectory) -> int:
    found = directory.checkpoints()
    return int(STEP.fullmatch(found[0].name)[1]) if found else 0
