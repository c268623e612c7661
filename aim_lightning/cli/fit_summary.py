"""Summarise a training that no signal stopped: results, and the command to run next."""

import torch
from lightning.pytorch.callbacks import Timer

from aim_lightning.cli.build.trainer_cli import AimCLI, hardware_of, scored_weights
from aim_lightning.cli.commands.validate import score
from aim_lightning.cli.config import Config
from aim_lightning.runs.results import record, recorded_step
from aim_lightning.runs.resume_policy import Progress, is_finished
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log, log_next
from aim_lightning.utils.process import is_rank_zero

MAX_TIME = "trainer.max_time"


def score_finished(config: Config, step: int) -> int:
    """Report a finished run, and validate it if it was stopped before its results were written.

    Raises:
        Stopped: a signal arrived during the validation.
    """
    directory = config.run_directory
    log(f"{directory.path} is finished (step {step})")
    if is_rank_zero():
        log_next(_next_command(config))
    return 0 if recorded_step(directory) == step else score(config)


def summarise(cli: AimCLI, config: Config) -> None:
    """Write results.json and print how training ended; call it on rank 0.

    Args:
        cli: after `trainer.fit`.
        config: of the run.

    Raises:
        UserError: results.json cannot be written.
    """
    directory, steps, validated = cli.directory, cli.trainer.global_step, cli.resume_state.validated_step
    # Values of the last validation; those of training steps are in TensorBoard.
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items() if name.startswith("val/")}
    facts = {"step": validated, "seed": config.values["seed_everything"], **scored_weights(cli)}
    if validated != steps:  # the metrics are of earlier weights
        del facts["weights_sha256"]
    try:
        record(directory, "fit", steps, facts, metrics, hardware_of(cli))
    except OSError as error:
        fault = f"{directory.results} cannot be written ({error.strerror}); the last checkpoint is kept"
        raise UserError(f"{fault}: free disk space, then make validate {directory.variables}") from None
    early = _ended_early(cli)
    parameters = sum(p.numel() for p in cli.model.network.parameters())
    end = f"was ended by {early} after" if early else "is complete:"
    log(f"\n{directory.path} {end} {steps} steps, {parameters:,} parameters")
    for name, value in metrics.items():
        log(f"  {name:28s}{value:z.4f}")
    if memory := torch.cuda.max_memory_allocated():
        log(f"  peak GPU memory             {memory / 2**30:.1f} GiB")
    longer = "a longer --trainer.max_time, which counts all starts of a run; " if early == MAX_TIME else ""
    resume = f"{longer}make train {directory.variables} goes on; " if early else ""
    log(f"results: {directory.results}")
    log_next(f"{resume}{_next_command(config)}")


def _ended_early(cli: AimCLI) -> str | None:
    """Return what ended training before its last step; None when that was reached."""
    trainer = cli.trainer
    progress = Progress(cli.directory.path, trainer.global_step, cli.datamodule.cursor.epoch)
    if is_finished(progress, {"max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs}):
        return None
    timers = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
    return MAX_TIME if any(rest is not None and rest <= 0 for rest in timers) else "a callback, such as early stopping,"


def _next_command(config: Config) -> str:
    target = "tokenize" if config.is_tokenizer else "validate"
    return f"make {target} {config.run_directory.variables}, or make tensorboard"
