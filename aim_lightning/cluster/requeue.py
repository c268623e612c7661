"""Does this job come back? One pure decision, and the call that acts on it.

Who asks: rank 0 after a stop at a batch boundary, and job.sbatch after srun has ended.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aim_lightning.cluster import signals
from aim_lightning.cluster.slurm_api import Job, NoCommand, SlurmError, SlurmJobInfo, command, show

# Exit codes of `fit`: job.sbatch and SLURM act on them.
USER_ERROR, REFUSED, HANG, CONTINUES = 2, 69, 70, 75
FINAL = (0, USER_ERROR, REFUSED, 130)
# What `slurm ended` answers where it cannot reach SLURM itself: by cause.
EXITS_OUTSIDE = {"warning": CONTINUES, "crash": CONTINUES, "sigterm": signals.EXITS[signals.TERM]}
WAITS = (2.0, 5.0, 10.0)  # seconds between attempts: the controller may be restarting

Cause = Literal["warning", "sigterm", "crash"]


@dataclass(frozen=True)
class RequeueDecision:
    """What to do with the job, and why, in words for the log.

    `already` = SLURM brings it back by itself; `outside` = job.sbatch must do it; `stay` = it is not to come back.
    """

    action: Literal["requeue", "already", "outside", "stay", "refused"]
    why: str


def scorer(cause: Cause, own_starts: int, facts: SlurmJobInfo, requeue_on_crash: bool = True) -> RequeueDecision:
    """Whether a job that has stopped is to be requeued.

    Args:
        cause: SIGUSR1 was seen, only SIGTERM was seen, or the processes ended in another way.
        own_starts: restarts when this incarnation began.
        facts: what SLURM says now.
    """
    if facts.restarts > own_starts or facts.state in ("PENDING", "REQUEUED"):
        return RequeueDecision("already", "SLURM has already put it back into the queue")
    if facts.state == "CANCELLED":
        return RequeueDecision("stay", "it was cancelled")
    if cause == "crash" and not requeue_on_crash:
        return RequeueDecision("stay", "cluster.requeue_on_crash is false")
    timed_out = facts.reason == "TimeLimit" or facts.state == "TIMEOUT"
    if not (timed_out or facts.preempted):
        if facts.state == "COMPLETING":
            return RequeueDecision("stay", "it was cancelled")
        if cause == "sigterm":
            return RequeueDecision("stay", "SIGTERM came without preemption or time limit, so somebody wants it to end")
    if not facts.may_requeue:
        return RequeueDecision("refused", "it was submitted with --no-requeue")
    reasons = {"warning": "its time runs out (SIGUSR1)", "sigterm": "it was preempted", "crash": "its processes ended"}
    return RequeueDecision("requeue", "its time ran out" if timed_out else reasons[cause])


def act(cause: Cause, job: Job, requeue_on_crash: bool = True, run: Callable[..., str] = command) -> RequeueDecision:
    """Ask SLURM, scorer, requeue. Never raises SlurmError: that becomes the verdict `refused`."""
    for wait in (*WAITS, None):
        try:
            facts = show(job.id, run)
            if not facts:
                return RequeueDecision("refused", f"SLURM knows no job {job.id}")
            verdict = scorer(cause, job.starts, facts[0], requeue_on_crash)
            if verdict.action == "requeue":
                run("scontrol", "requeue", job.id)
            return verdict
        except NoCommand as error:
            return RequeueDecision("outside", str(error))
        except SlurmError as error:
            if wait is None or not _passing(str(error)):
                return RequeueDecision("refused", str(error))
            time.sleep(wait)
    raise AssertionError("unreachable")


def cause_of(told: int | None, code: int) -> Cause | None:
    """What the end of training says to job.sbatch; None = nothing is to be done.

    Args:
        told: the exit code that `fit` wrote down; None when it could not.
        code: that of srun, the highest of all tasks.
    """
    if told is None and code == signals.EXITS[signals.TERM]:
        return "crash"  # of another rank: srun then sends SIGTERM to the rest
    code = code if told is None else told
    if code in FINAL:
        return None
    if code in (CONTINUES, signals.EXITS[signals.USR1]):
        return "warning"
    return "sigterm" if code == signals.EXITS[signals.TERM] else "crash"


def _passing(message: str) -> bool:
    """Whether waiting may help."""
    words = ("Unable to contact", "Connection refused", "timed out", "gave no answer", "Socket", "try again")
    return any(word.lower() in message.lower() for word in words)
