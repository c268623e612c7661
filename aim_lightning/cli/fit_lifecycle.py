"""The SLURM job of `fit`: checks before training, callbacks during it, requeueing after it."""

import time

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Callback

from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.callbacks.training.preflight import Preflight
from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.config import Config
from aim_lightning.cli.slurm.in_job import resubmission
from aim_lightning.cluster import job_registry, signals
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


def check_step(config: Config) -> None:
    """Check that srun started the processes that the configuration expects.

    Args:
        config: of the run.

    Raises:
        UserError: another number of processes or nodes, or too few visible GPUs.
    """
    trainer = config.values["trainer"]
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
    # srun ends all ranks when the first one ends: rank 0, which prints the reason, must be that one.
    time.sleep(5)
    return 2


def after_rank_zero(fault: UserError) -> BaseException:
    """Return the exception of another rank for a fault that rank 0 reports.

    If rank 0 has not ended the job by then, the fault is on this rank only, such as an old state of a shared disk.

    Args:
        fault: found on this rank.
    """
    code = _wait_for_rank_zero()
    return SystemExit(code) if signals.received() else fault


def watchdog(config: Config) -> Watchdog:
    """Return the watchdog that ends this process when it hangs."""
    return Watchdog(config.cluster.hang_seconds, rank())


def guards(config: Config, directory: RunDirectory, decision: Decision) -> list[Callback]:
    """Return the callbacks that every training has."""
    start = decision.checkpoint.name if decision.checkpoint else "the beginning"
    path = str(directory.path)
    return [Preflight(path, config.values, start), Preemption(path)]


def leave(stop: Stopped, directory: RunDirectory, arguments: Arguments) -> int:
    """Requeue the job after a stop between two steps, where it may be, and return the exit code.

    Args:
        stop: the exception of the stop.
        directory: of the run.
        arguments: the command line of this process, which contains the path of the job script.
    """
    if not is_rank_zero():
        return 0  # another code would make srun end rank 0 while it asks SLURM
    kept, job = _kept(stop), Job.current()
    if job is not None and stop.code == signals.INT:
        job_registry.record_exit(directory.path, job, signals.EXITS[stop.code])  # the code of a final end
    if job is None or stop.code == signals.INT:
        log(f"stopped by {signals.NAMES[stop.code]}, {kept}; the same command continues {directory.path}")
        return signals.EXITS[stop.code]
    stopped_at = time.time()
    decision = act("warning" if stop.code == signals.USR1 else "sigterm", job)
    code = _code(decision, stop)
    if decision.action in ("requeue", "already", "outside"):
        job_registry.record_timings(directory.path, stopped_at=stopped_at)
    job_registry.record_exit(directory.path, job, code)
    log(f"{kept}; {_explain(decision, job, resubmission(directory, arguments))}")
    return code


def _kept(stop: Stopped) -> str:
    """Describe where the next start continues."""
    if stop.step == 0:
        return "no step was done yet, the next start begins at step 0"
    if stop.saved:
        return f"step {stop.step} is in a checkpoint"
    return f"no checkpoint of step {stop.step} was written, the next start goes back to the one before"


def _code(decision: RequeueDecision, stop: Stopped) -> int:
    if decision.action in ("requeue", "already"):
        return CONTINUES
    if decision.action == "outside":
        return EXITS_OUTSIDE["warning" if stop.code == signals.USR1 else "sigterm"]
    if decision.action == "refused":
        return REFUSED
    return signals.EXITS[stop.code]


def _explain(decision: RequeueDecision, job: Job, again: str) -> str:
    if decision.action == "outside":
        return f"job {job.id} is left to job.sbatch: {decision.reason}"
    if decision.action in ("requeue", "already"):
        return f"job {job.id} is requeued: {decision.reason}"
    if decision.action == "refused":
        return f"SLURM did not requeue job {job.id}: {decision.reason}; the checkpoint is kept, submit again: {again}"
    return f"job {job.id} is not requeued by itself: {decision.reason}; to go on: {again}"


def remember_end(directory: RunDirectory, code: int) -> None:
    """Record the exit code for job.sbatch; without a SLURM job, do nothing."""
    job = Job.current()
    if job is not None and directory.path.is_dir():
        job_registry.record_exit(directory.path, job, code)
