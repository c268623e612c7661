"""How a training that was not stopped by a signal ends: results, and what one would do next."""

import torch
from lightning.pytorch.callbacks import Timer

from aim_lightning.cli.build.trainer_cli import AimCLI, hardware_of, scored_weights_hash, weights_kind
from aim_lightning.cli.commands.validate import score
from aim_lightning.cli.config import Config
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.results import record, recorded_step
from aim_lightning.runs.resume_policy import Decision, Progress, is_finished
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log, log_next
from aim_lightning.utils.process import is_rank_zero

MAX_TIME = "trainer.max_time"


def finished(document: Config, directory: RunDirectory, decision: Decision) -> int:
    """Nothing to train; a run that was stopped between its last checkpoint and its results gets them now.

    Raises:
        Stopped: by a signal before they were there.
    """
    log(f"{directory.path} is finished (step {decision.step})")
    if is_rank_zero():
        log_next(_next(document, directory))
    return 0 if recorded_step(directory) == decision.step else score(document)


def finish(cli: AimCLI, document: Config, directory: RunDirectory, validated: int | None) -> None:
    """Results and last words of a training that was not stopped by a signal; for rank 0.

    Args:
        validated: step of the latest validation.
    """
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items() if name.startswith("val/")}
    steps, early = cli.trainer.global_step, _ended_early(cli)
    facts = {"step": validated, "seed": document.values["seed_everything"], "weights": weights_kind(cli)}
    facts |= {"weights_sha256": scored_weights_hash(cli)} if validated == steps else {}
    _record(directory, steps, facts, metrics, hardware_of(cli))
    parameters = sum(p.numel() for p in cli.model.network.parameters())
    end = f"was ended by {early} after" if early else "is complete:"
    log(f"\n{directory.path} {end} {steps} steps, {parameters:,} parameters")
    for name, value in metrics.items():
        log(f"  {name:28s}{value:z.4f}")
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0
    if memory:
        log(f"  peak GPU memory             {memory:.1f} GiB")
    log(f"results: {directory.results}")
    log_next(f"{_go_on(early, directory)}{_next(document, directory)}")


def _ended_early(cli: AimCLI) -> str | None:
    """What ended training before its last step; None when that was reached."""
    trainer = cli.trainer
    progress = Progress(cli.directory.path, trainer.global_step, cli.datamodule.cursor.epoch)
    if is_finished(progress, {"max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs}):
        return None
    timer = next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)
    if timer and (left := timer.time_remaining()) is not None and left <= 0:
        return MAX_TIME
    return "a callback, such as early stopping,"


def _go_on(early: str | None, directory: RunDirectory) -> str:
    if early is None:
        return ""
    longer = "a longer --trainer.max_time, which counts all starts of a run; " if early == MAX_TIME else ""
    return f"{longer}make train EXP={directory.experiment} RUN={directory.run} goes on; "


def _record(directory: RunDirectory, step: int, facts: dict, metrics: dict[str, float], hardware: str) -> None:
    try:
        record(directory, "fit", step, facts, metrics, hardware)
    except OSError as error:
        fault = f"{directory.results} cannot be written ({error.strerror}); the last checkpoint is kept"
        again = f"make validate EXP={directory.experiment} RUN={directory.run}"
        raise UserError(f"{fault}: make room, then {again}") from None


def _next(document: Config, directory: RunDirectory) -> str:
    """The command that one would type now."""
    names = f"EXP={directory.experiment} RUN={directory.run}"
    tokenizer = document.values["model"]["class_path"].endswith("TokenizerModule")
    return f"make {'tokenize' if tokenizer else 'validate'} {names}, or make tensorboard"
