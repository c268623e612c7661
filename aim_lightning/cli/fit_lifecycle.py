"""Manage the state around a training: lease, watchdog, decision to continue, record of the start, and exit code."""

import argparse
import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Callback
from torch.distributed import DistNetworkError, DistStoreError

from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.callbacks.training.preflight import Preflight
from aim_lightning.callbacks.training.resume_state import from_file
from aim_lightning.checkpoint.io import incompatible, read_checkpoint
from aim_lightning.cli.build.init_from import start_from
from aim_lightning.cli.build.trainer_cli import AimCLI, quiet
from aim_lightning.cli.config import Config
from aim_lightning.cli.slurm.in_job import requeue_after
from aim_lightning.cluster import job_registry, signals
from aim_lightning.cluster.rank_consistency import task_fault
from aim_lightning.cluster.requeue import USER_ERROR
from aim_lightning.cluster.signals import Stopped
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.cluster.watchdog import Watchdog
from aim_lightning.config.yaml import dump
from aim_lightning.modules.optim import total_steps
from aim_lightning.runs.history import append_start, read_content
from aim_lightning.runs.lease import Lease
from aim_lightning.runs.results import read_results
from aim_lightning.runs.resume_policy import Decision, decide, decide_on_data, refusal
from aim_lightning.utils.errors import TransientError, UserError, first_line, killed_worker, one_line
from aim_lightning.utils.files import tolerate_disk_errors, write_text
from aim_lightning.utils.lightning_private import disable_signal_handlers
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import beat, is_rank_zero, node_name, rank


class FitLifecycle:
    """Context manager around a training; call `start`, build the trainer, call `prepare`, then train.

    Leaving the context releases the lease and turns signals and errors into `exit_code`. It suppresses exceptions that
    have an exit code, after it recorded the code for job.sbatch.

    Args:
        config: of the run.
        options: of the command line.
    """

    def __init__(self, config: Config, options: argparse.Namespace) -> None:
        self.config = config
        self.options = options
        self.directory = config.run_directory
        self.decision = Decision("fresh")
        self.exit_code = 0
        self.resources = contextlib.ExitStack()

    def __enter__(self) -> "FitLifecycle":
        quiet()
        signals.install()
        signals.on_abort = self._record_exit
        return self

    def start(self) -> Decision:
        """Take the lease and decide whether to train from the start, continue, or score a finished run.

        Raises:
            UserError: wrong processes, another training holds the lease, or the run must not continue or is damaged.
            TransientError: the disk fails now.
        """
        _check_processes(self.config)
        if is_rank_zero():
            self.resources.enter_context(Lease(self.directory.lease))
        self.resources.enter_context(Watchdog(self.config.cluster.hang_seconds, rank()))
        # Training adds to these records: damaged ones must not end it after hours.
        read_results(self.directory.results)
        job_registry.read_timings(self.directory.path)
        beat("reading checkpoints")
        self.content = read_content(self.directory, self.config.values)
        self._follow(decide(self.content, self.options.allow_changes))
        return self.decision

    @property
    def micro_batch_size(self) -> int | None:
        """Return the micro-batch of the newest checkpoint; None for a new run."""
        return (self.content.data or {}).get("micro_batch_size")

    @property
    def callbacks(self) -> list[Callback]:
        """Return the callbacks that every training has."""
        path, checkpoint = str(self.directory.path), self.decision.checkpoint
        start = checkpoint.name if checkpoint else "the beginning"
        return [Preflight(path, self.config.values, start), Preemption(path)]

    def prepare(self, cli: AimCLI) -> None:
        """Check or initialise the weights, check the data, and record the start; every rank must call it.

        Raises:
            UserError: the checkpoint, `init_from` or the training set does not fit.
        """
        disable_signal_handlers(cli.trainer)
        if hasattr(cli.model, "check_length"):
            cli.model.check_length(total_steps(cli.trainer, cli.datamodule))
        if self.decision.checkpoint:
            _check_weights(cli, self.decision.checkpoint)
        elif getattr(cli.model, "init_from", None):
            start_from(cli.model, cli.model.init_from, getattr(cli.datamodule, "manifest", None))
        if is_rank_zero():
            present = cli.datamodule.identity()
            self._follow(decide_on_data(self.decision, self.content.data, present, self.options.allow_changes))
            self._follow(replace(self.decision, notes=[*self.decision.notes, *cli.notes]))
            self._record_start()
            step, checkpoint = self.decision.step, self.decision.checkpoint
            origin = f"from step {step} ({checkpoint})" if checkpoint else "from the start"
            log(f"{self.directory.path}: training {origin}")  # nothing can refuse the run any more

    def _follow(self, decision: Decision) -> None:
        """Log the new notes of a decision, or raise its refusal; rank 0 reports it for all ranks."""
        if decision.action == "refuse":
            fault = UserError(refusal(self.directory, decision))
            if not is_rank_zero():
                code = _wait_for_rank_zero()
                # If rank 0 has not ended the job by then, only this rank sees the fault, such as an old cached state.
                raise SystemExit(code) if signals.received() else fault
            raise fault
        for note in decision.notes[len(self.decision.notes) :]:
            log(note)
        self.decision = decision

    def _record_start(self) -> None:
        self.directory.set_aside_newer(self.decision.step, self.content.damaged)
        for path in self.directory.remove_leftovers():
            log(f"removed {path}, left by a save that was cut short or found damaged")
        append_start(self.directory, self.decision)
        with tolerate_disk_errors(self.directory.config):
            write_text(self.directory.config, dump(self.config.values))

    def __exit__(self, error_type: type | None, error: BaseException | None, traceback: object) -> bool:
        # Release the lease first: SLURM may start the requeued job on another node while this process still ends.
        self.resources.close()
        if isinstance(error, Stopped):
            self.exit_code = requeue_after(error, self.directory, self.options.arguments)
        elif isinstance(error, SystemExit) and error.code == 1:  # Lightning's exit after a second Ctrl-C
            log(f"aborted; the same command continues {self.directory.path} from step {self.directory.latest_step}")
            self.exit_code = signals.EXITS[signals.INT]
        elif fault := _transient_error(error):
            self.exit_code = fault.exit_code
            self._record_exit(fault.exit_code)
            print(f"error: {one_line(fault)}", file=sys.stderr, flush=True)
        else:
            if isinstance(error, UserError):
                self._record_exit(USER_ERROR)
            return False
        return True

    def _record_exit(self, code: int) -> None:
        job_registry.record_exit(self.directory.path, Job.current(), code)


def _transient_error(error: BaseException | None) -> TransientError | None:
    """Return the error that a later start may not meet: of a disk, of the network, or of a killed loader process."""
    if isinstance(error, TransientError):
        return error
    if isinstance(error, DistNetworkError | DistStoreError):
        fact = f"node {node_name()}, rank {rank()}: the ranks cannot reach each other"
        return TransientError(f"{fact} ({first_line(error)})")
    return killed_worker(error) if isinstance(error, RuntimeError) else None


def _check_processes(config: Config) -> None:
    """Raise UserError if srun started another number of processes or nodes, or too few GPUs are visible."""
    devices = config.trainer.get("devices", "auto")
    if TorchElasticEnvironment.detect() or not isinstance(devices, int):
        return
    visible = torch.cuda.device_count() if config.trainer.get("accelerator") == "gpu" else None
    if fault := task_fault(Job.current(), config.trainer.get("num_nodes", 1), devices, visible):
        raise UserError(fault) if is_rank_zero() else SystemExit(_wait_for_rank_zero())


def _wait_for_rank_zero() -> int:
    # srun ends all ranks when the first one ends: rank 0, which prints the reason, must be that one.
    time.sleep(5)
    return USER_ERROR


def _check_weights(cli: AimCLI, checkpoint: Path) -> None:
    # Lightning's strict loading would list each differing weight on a line of its own.
    if parts := incompatible(cli.model, from_file(read_checkpoint(checkpoint))["state_dict"], limit=3):
        fact = f"{checkpoint} does not fit the {type(cli.model).__name__} that is configured: {'; '.join(parts)}"
        raise UserError(f"{fact}; give it back its options, or train this one as another RUN")
