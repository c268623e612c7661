"""Decide whether a stopped job is requeued, and requeue it.

Called by rank 0 after a stop between two steps, and by job.sbatch after srun has ended.
"""

import time
from dataclasses import dataclass
from typing import Literal

from aim_lightning.cluster import signals, slurm_api
from aim_lightning.cluster.slurm_api import Job, NoCommand, SlurmError, SlurmJobInfo

# Exit codes of `fit`: job.sbatch and SLURM act on them.
USER_ERROR, REFUSED, HANG, CONTINUES = 2, 69, 70, 75
FINAL = (0, USER_ERROR, REFUSED, 130)
# Exit codes of `slurm ended` without access to SLURM, by cause.
EXITS_OUTSIDE = {"warning": CONTINUES, "crash": CONTINUES, "sigterm": signals.EXITS[signals.TERM]}
WAITS = (2.0, 5.0, 10.0)  # seconds between attempts: the controller may be restarting
TRANSIENT = ("Unable to contact", "Connection refused", "timed out", "gave no answer", "Socket", "try again")

Cause = Literal["warning", "sigterm", "crash"]


@dataclass(frozen=True)
class RequeueDecision:
    """Action on a stopped job, with the reason for the log.

    Args:
        action: `already` = SLURM has requeued it; `outside` = job.sbatch must requeue it; `stay` = it must not run
            again; `refused` = SLURM does not requeue it.
        reason: in words.
    """

    action: Literal["requeue", "already", "outside", "stay", "refused"]
    reason: str


def decide(cause: Cause, starts: int, info: SlurmJobInfo, requeue_on_crash: bool = True) -> RequeueDecision:
    """Decide whether a stopped job is to be requeued.

    Args:
        cause: `warning` = SIGUSR1 was received; `sigterm` = only SIGTERM was; `crash` = the processes ended otherwise.
        starts: restarts of the job when this start began.
        info: SLURM's current record of the job.
        requeue_on_crash: option of the section `cluster`.
    """
    # SLURM may already have requeued it, for instance after a node failure: a second requeue would be an error.
    if info.restarts > starts or info.state in ("PENDING", "REQUEUED"):
        return RequeueDecision("already", "SLURM has already put it back into the queue")
    if info.state == "CANCELLED":
        return RequeueDecision("stay", "it was cancelled")
    if cause == "crash" and not requeue_on_crash:
        return RequeueDecision("stay", "cluster.requeue_on_crash is false")
    timed_out = info.reason == "TimeLimit" or info.state == "TIMEOUT"
    if not (timed_out or info.preempted):
        # scancel leaves no trace but this: requeueing would bring the job back against the user's will.
        if info.state == "COMPLETING":
            return RequeueDecision("stay", "it was cancelled")
        if cause == "sigterm":
            return RequeueDecision("stay", "SIGTERM came without preemption or time limit")
    if not info.may_requeue:
        return RequeueDecision("refused", "it was submitted with --no-requeue")
    reasons = {"warning": "its time runs out (SIGUSR1)", "sigterm": "it was preempted", "crash": "its processes ended"}
    return RequeueDecision("requeue", "its time ran out" if timed_out else reasons[cause])


def act(cause: Cause, job: Job, requeue_on_crash: bool = True) -> RequeueDecision:
    """Read the job's record, decide, and requeue; an error of SLURM becomes `refused` or `outside`.

    Args:
        cause: as in `decide`.
        job: the job of this process.
        requeue_on_crash: option of the section `cluster`.
    """
    waits = iter(WAITS)
    while True:
        try:
            jobs = slurm_api.show(job.id)
            if not jobs:
                return RequeueDecision("refused", f"SLURM has no record of job {job.id}")
            decision = decide(cause, job.starts, jobs[0], requeue_on_crash)
            if decision.action == "requeue":
                slurm_api.command("scontrol", "requeue", job.id)
            return decision
        except NoCommand as error:
            return RequeueDecision("outside", str(error))
        except SlurmError as error:
            wait = next(waits, None)
            if wait is None or not any(text.lower() in str(error).lower() for text in TRANSIENT):
                return RequeueDecision("refused", str(error))
            time.sleep(wait)


def cause_of(recorded: int | None, code: int) -> Cause | None:
    """Return why training ended, for job.sbatch; None = nothing is to be done.

    Args:
        recorded: exit code that `fit` recorded; None without one.
        code: of srun, the highest of all tasks.
    """
    if recorded is None and code == signals.EXITS[signals.TERM]:
        return "crash"  # of another rank: srun then sends SIGTERM to the rest
    code = code if recorded is None else recorded
    if code in FINAL:
        return None
    if code in (CONTINUES, signals.EXITS[signals.USR1]):
        return "warning"
    return "sigterm" if code == signals.EXITS[signals.TERM] else "crash"
