"""What `fit` does about the job that it runs in: checks before, guards during, requeueing after."""

import time

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Callback

from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.callbacks.training.preflight import Preflight
from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.config import Config
from aim_lightning.cli.slurm.status import resubmission
from aim_lightning.cluster import exit_record, signals, step_timings
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.cluster.rank_consistency import task_fault
from aim_lightning.cluster.requeue import CONTINUES, EXITS_OUTSIDE, REFUSED, RequeueDecision, act
from aim_lightning.cluster.signals import Stopped
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.cluster.watchdog import Watchdog
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.resume_policy import Decision
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import is_rank_zero, rank


def cluster_options(document: Config) -> ClusterOptions:
    """The section `cluster`."""
    return ClusterOptions(**document.values["cluster"])


def check_step(document: Config) -> None:
    """The processes that srun started must be those that the configuration counts on.

    Raises:
        UserError: they are not.
    """
    trainer = document.values["trainer"]
    devices = trainer.get("devices", "auto")
    if TorchElasticEnvironment.detect() or not isinstance(devices, int):
        return
    visible = torch.cuda.device_count() if trainer.get("accelerator") == "gpu" else None
    fault = task_fault(Job.current(), trainer.get("num_nodes", 1), devices, visible)
    if fault and is_rank_zero():
        raise UserError(fault)
    if fault:
        raise SystemExit(_wait_for_rank_zero())


def _wait_for_rank_zero() -> int:
    """The first process to end takes the others along; it should be the one that says why."""
    time.sleep(5)
    return 2


def after_rank_zero(fault: UserError) -> BaseException:
    """What another rank raises for a fault that rank 0 has met too: nothing to read, where rank 0 has ended the job.

    Where nobody ended it, this rank alone sees things so, such as an old state of a shared disk.
    """
    code = _wait_for_rank_zero()
    return SystemExit(code) if signals.received() else fault


def watchdog(document: Config) -> Watchdog:
    """Notices when this process hangs."""
    return Watchdog(cluster_options(document).hang_seconds, rank())


def guards(document: Config, directory: RunDirectory, decision: Decision) -> list[Callback]:
    """Callbacks that every training has."""
    start = decision.checkpoint.name if decision.checkpoint else "the beginning"
    path = str(directory.path)
    return [Preflight(path, document.values, start), Preemption(path)]


def leave(stop: Stopped, directory: RunDirectory, given: Arguments) -> int:
    """After a stop at a batch boundary: put the job back into the queue where that is wanted; the exit code.

    `given` is the command line, which knows the job script. Only rank 0 ends with a code that is not 0: srun ends all
    ranks at the first one.
    """
    if not is_rank_zero():
        return 0
    kept, job = _kept(stop), Job.current()
    if job is None:
        log(f"stopped by {signals.NAMES[stop.code]}, {kept}; the same command continues {directory.path}")
        return signals.EXITS[stop.code]
    stopped_at = time.time()
    verdict = act("warning" if stop.code == signals.USR1 else "sigterm", job)
    code = _code(verdict, stop)
    if verdict.action in ("requeue", "already", "outside"):
        step_timings.record(directory.path, stopped_at=stopped_at)
    exit_record.write(directory.path, job, code)
    log(f"{kept}; {_explain(verdict, job, resubmission(directory, given))}")
    return code


def _kept(stop: Stopped) -> str:
    """Where the next start begins."""
    if stop.step == 0:
        return "no step was done yet, the next start begins anew"
    if stop.saved:
        return f"step {stop.step} is in a checkpoint"
    return f"no checkpoint of step {stop.step} was written, the next start goes back to the one before"


def _code(verdict: RequeueDecision, stop: Stopped) -> int:
    if verdict.action in ("requeue", "already"):
        return CONTINUES
    if verdict.action == "outside":
        return EXITS_OUTSIDE["warning" if stop.code == signals.USR1 else "sigterm"]
    if verdict.action == "refused":
        return REFUSED
    return signals.EXITS[stop.code]


def _explain(verdict: RequeueDecision, job: Job, again: str) -> str:
    if verdict.action == "outside":
        return f"job {job.id} is left to job.sbatch: {verdict.why}"
    if verdict.action in ("requeue", "already"):
        return f"job {job.id} is requeued: {verdict.why}"
    if verdict.action == "refused":
        return f"SLURM did not requeue job {job.id}: {verdict.why}; the checkpoint is kept, submit again: {again}"
    return f"job {job.id} is not requeued by itself: {verdict.why}; to go on: {again}"


def remember_end(directory: RunDirectory, code: int) -> None:
    """Leave the exit code for job.sbatch, where there is one."""
    job = Job.current()
    if job is not None and directory.path.is_dir():
        exit_record.write(directory.path, job, code)
