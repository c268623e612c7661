"""`aim-lightning fit`: train, or continue where the run stopped."""

import argparse
import contextlib
import sys

import torch

from aim_lightning.callbacks.preemption import own_signals
from aim_lightning.callbacks.validated_step import ValidatedStep
from aim_lightning.cli.build import AimCLI, build, hardware_of, quiet, run_directory, scored_weights_hash, weights_kind
from aim_lightning.cli.initial import start_from
from aim_lightning.cli.job import check_step, guards, leave, remember_end, watchdog
from aim_lightning.cli.validate import run as validate
from aim_lightning.cluster import signals
from aim_lightning.cluster.requeue import USER_ERROR
from aim_lightning.cluster.signals import Stopped
from aim_lightning.config import Document
from aim_lightning.config.yaml_text import dump
from aim_lightning.runs.content import read_content
from aim_lightning.runs.decide import Decision, RunContent, decide, decide_on_data
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.history import append_start
from aim_lightning.runs.lease import Lease
from aim_lightning.runs.results import record
from aim_lightning.utils.errors import PassingFault, UserError
from aim_lightning.utils.files import write_text
from aim_lightning.utils.process import is_rank_zero, say
from aim_lightning.utils.tolerate import tolerate_disk_errors


def run(document: Document, options: argparse.Namespace) -> int:
    """Returns 0 when training is complete; the other codes stand in docs/slurm.md."""
    quiet()
    signals.install()
    directory = run_directory(document)
    try:
        check_step(document)
        return _run(document, options, directory)
    except Stopped as stop:
        return leave(stop, directory)
    except PassingFault as fault:
        remember_end(directory, fault.exit_code)
        print(f"error: {fault}", file=sys.stderr, flush=True)
        return fault.exit_code
    except UserError:
        remember_end(directory, USER_ERROR)
        raise


def _run(document: Document, options: argparse.Namespace, directory: RunDirectory) -> int:
    with Lease(directory.lease) if is_rank_zero() else contextlib.nullcontext():
        content = read_content(directory, document.values)
        decision = decide(content, options.allow_changes)
        _obey(decision, directory)
        if decision.action == "finished":
            return _finished(document, directory, decision, options)
        with watchdog(document):
            return _train(document, directory, decision, content, options)


def _obey(decision: Decision, directory: RunDirectory, said: int = 0) -> None:
    """Print the notes but the first `said`.

    Raises:
        UserError: the decision is to refuse.
    """
    if decision.action == "refuse":
        raise UserError(f"{directory.path} is left as it is: {' '.join(decision.notes)}")
    for note in decision.notes[said:]:
        say(note)


def _train(
    document: Document, directory: RunDirectory, decision: Decision, content: RunContent, options: argparse.Namespace
) -> int:
    where = f"from step {decision.step} ({decision.checkpoint})" if decision.checkpoint else "from the start"
    say(f"{directory.path}: training {where}")
    # TensorBoard counts from 0: the checkpoint of step n was written after entry n - 1.
    validated = ValidatedStep()
    cli = build(document, purge_step=decision.step, guards=[*guards(document, directory, decision), validated])
    own_signals(cli.trainer)
    if is_rank_zero():
        said = len(decision.notes)
        decision = decide_on_data(decision, content.data, cli.datamodule.identity(), options.allow_changes)
        _obey(decision, directory, said)
        directory.set_aside_newer(decision.step)
        for path in directory.remove_leftovers():
            say(f"removed {path}, left by a save that was cut short or found damaged")
        append_start(directory, decision)
        with tolerate_disk_errors(directory.config):
            write_text(directory.config, dump(document.values))
    checkpoint = str(decision.checkpoint) if decision.checkpoint else None
    if checkpoint is None and getattr(cli.model, "init_from", None):
        start_from(cli.model, cli.model.init_from)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    except SystemExit as stop:
        if stop.code != 1:  # Lightning's answer to Ctrl-C
            raise
        say(f"stopped; the same command continues {directory.path}")
        return 130
    _finish(cli, document, directory, validated.step)
    return 0


def _finished(document: Document, directory: RunDirectory, decision: Decision, options: argparse.Namespace) -> int:
    """Nothing to train; a run that was stopped between its last checkpoint and its results gets them now."""
    say(f"{directory.path} is finished (step {decision.step}); {_next(document, directory)}")
    return 0 if directory.results.exists() else validate(document, options)


def _finish(cli: AimCLI, document: Document, directory: RunDirectory, validated: int | None) -> None:
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items() if name.startswith("val/")}
    steps = cli.trainer.global_step
    if is_rank_zero():
        facts = {"step": validated, "seed": document.values["seed_everything"], "weights": weights_kind(cli)}
        facts |= {"weights_sha256": scored_weights_hash(cli)} if validated == steps else {}
        record(directory, "fit", steps, facts, metrics, hardware_of(cli))
        parameters = sum(p.numel() for p in cli.model.network.parameters())
        say(f"\n{directory.path} is complete: {steps} steps, {parameters:,} parameters")
        for name, value in metrics.items():
            say(f"  {name:28s}{value:.4f}")
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0
        if memory:
            say(f"  peak GPU memory             {memory:.1f} GiB")
        say(f"results: {directory.results}\nnext: {_next(document, directory)}")


def _next(document: Document, directory: RunDirectory) -> str:
    """The command that one would type now."""
    names = f"EXP={directory.experiment} RUN={directory.run}"
    tokenizer = document.values["model"]["class_path"].endswith("TokenizerModule")
    return f"make {'tokenize' if tokenizer else 'validate'} {names}, or make tensorboard"
