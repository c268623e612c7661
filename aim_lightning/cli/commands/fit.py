"""`aim-lightning fit`: train, or continue where the run stopped."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.common_options import add_allow_changes
from aim_lightning.cli.config import Config
from aim_lightning.cluster import signals
from aim_lightning.cluster.requeue import USER_ERROR
from aim_lightning.cluster.signals import Stopped
from aim_lightning.config.yaml import dump
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.lease import Lease
from aim_lightning.runs.resume_policy import Decision, RunContent, decide, decide_on_data, refusal
from aim_lightning.utils.errors import TransientError, UserError, killed_worker, one_line
from aim_lightning.utils.files import tolerate_disk_errors, write_text
from aim_lightning.utils.lightning_private import disable_signal_handlers
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import beat, is_rank_zero, node_name, rank

if TYPE_CHECKING:
    from aim_lightning.cli.build.trainer_cli import AimCLI

HELP = "train, or continue an unfinished run"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_allow_changes(parser)


def run(document: Config, options: argparse.Namespace) -> int:
    """Returns 0 when training is complete; the other codes stand in docs/slurm.md."""
    from torch.distributed import DistNetworkError, DistStoreError

    from aim_lightning.cli.build.trainer_cli import quiet, run_directory
    from aim_lightning.cli.fit_lifecycle import check_step, leave, remember_end

    quiet()
    signals.install()
    directory = run_directory(document)
    try:
        check_step(document)
        return _run(document, options, directory)
    except Stopped as stop:
        return leave(stop, directory, options.given)
    except TransientError as fault:
        return _passing(fault, directory)
    except (DistNetworkError, DistStoreError) as error:
        reason = str(error).strip().splitlines()[0]
        fault = TransientError(f"node {node_name()}, rank {rank()}: the ranks cannot reach each other ({reason})")
        return _passing(fault, directory)
    except RuntimeError as error:
        fault = killed_worker(error)
        if fault is None:
            raise
        return _passing(fault, directory)
    except UserError:
        remember_end(directory, USER_ERROR)
        raise


def _passing(fault: TransientError, directory: RunDirectory) -> int:
    from aim_lightning.cli.fit_lifecycle import remember_end

    remember_end(directory, fault.exit_code)
    print(f"error: {one_line(fault)}", file=sys.stderr, flush=True)
    return fault.exit_code


def _run(document: Config, options: argparse.Namespace, directory: RunDirectory) -> int:
    from aim_lightning.cli.fit_lifecycle import watchdog
    from aim_lightning.cli.fit_summary import finished
    from aim_lightning.runs.history import read_content

    with Lease(directory.lease) if is_rank_zero() else contextlib.nullcontext(), watchdog(document):
        beat("reading checkpoints")
        content = read_content(directory, document.values)
        decision = decide(content, options.allow_changes)
        _obey(decision, directory)
        if decision.action == "finished":
            return finished(document, directory, decision)
        return _train(document, directory, decision, content, options)


def _obey(decision: Decision, directory: RunDirectory, said: int = 0) -> None:
    """Print the notes but the first `said`.

    Raises:
        UserError: the decision is to refuse; rank 0 says so for all.
    """
    from aim_lightning.cli.fit_lifecycle import after_rank_zero

    if decision.action == "refuse":
        fault = UserError(refusal(directory, decision))
        raise fault if is_rank_zero() else after_rank_zero(fault)
    for note in decision.notes[said:]:
        log(note)


def _train(
    document: Config, directory: RunDirectory, decision: Decision, content: RunContent, options: argparse.Namespace
) -> int:
    from aim_lightning.callbacks.training.resume_state import ValidatedStep
    from aim_lightning.cli.build.init_from import start_from
    from aim_lightning.cli.build.trainer_cli import build
    from aim_lightning.cli.fit_lifecycle import guards
    from aim_lightning.cli.fit_summary import finish
    from aim_lightning.modules.optim import total_steps

    where = f"from step {decision.step} ({decision.checkpoint})" if decision.checkpoint else "from the start"
    log(f"{directory.path}: training {where}")
    # TensorBoard drops what earlier processes logged after the checkpoint.
    validated = ValidatedStep()
    cli = build(document, purge_step=decision.step + 1, guards=[*guards(document, directory, decision), validated])
    disable_signal_handlers(cli.trainer)
    if hasattr(cli.model, "check_length"):
        cli.model.check_length(total_steps(cli.trainer, cli.datamodule))
    if decision.checkpoint:
        _check_fit(cli, decision.checkpoint)
    elif getattr(cli.model, "init_from", None):
        start_from(cli.model, cli.model.init_from, getattr(cli.datamodule, "manifest", None))
    if is_rank_zero():
        known = len(decision.notes)
        decision = decide_on_data(decision, content.data, cli.datamodule.identity(), options.allow_changes)
        _obey(decision, directory, known)
        _write_start(document, directory, decision, content)
    checkpoint = str(decision.checkpoint) if decision.checkpoint else None
    try:
        with signals.graceful_interrupt():
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    except SystemExit as stop:
        if stop.code != 1:  # Lightning's exit after a second Ctrl-C
            raise
        log(f"aborted; the same command continues {directory.path} from step {directory.latest_step}")
        return 130
    if is_rank_zero():
        finish(cli, document, directory, validated.step)
    return 0


def _write_start(document: Config, directory: RunDirectory, decision: Decision, content: RunContent) -> None:
    """What a start leaves in the run directory before it trains."""
    from aim_lightning.runs.history import append_start

    directory.set_aside_newer(decision.step, content.damaged)
    for path in directory.remove_leftovers():
        log(f"removed {path}, left by a save that was cut short or found damaged")
    append_start(directory, decision)
    with tolerate_disk_errors(directory.config):
        write_text(directory.config, dump(document.values))


def _check_fit(cli: AimCLI, checkpoint: Path) -> None:
    """Before Lightning's strict loading, which lists every weight on lines of its own."""
    from aim_lightning.callbacks.training.resume_state import from_file
    from aim_lightning.checkpoint.io import incompatible, read_checkpoint

    parts = incompatible(cli.model, from_file(read_checkpoint(checkpoint))["state_dict"], limit=3)
    if parts:
        raise UserError(
            f"{checkpoint} does not fit the {type(cli.model).__name__} that is configured: {'; '.join(parts)}; "
            "give it back its options, or train this one as another RUN"
        )
