"""`aim-lightning validate`: score the newest checkpoint of a run."""

import argparse
from pathlib import Path
from typing import Any

from aim_lightning.cli.config import Config
from aim_lightning.cluster import signals
from aim_lightning.cluster.signals import Stopped
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.runs.resume_policy import differences
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.lightning_private import disable_signal_handlers, set_logged_step
from aim_lightning.utils.logging import log, log_next
from aim_lightning.utils.process import is_rank_zero

HELP = "score the newest checkpoint (EMA weights) and write results.json"


def run(config: Config, options: argparse.Namespace) -> int:
    """Compute the loss and all metric callbacks on the validation set and write results.json."""
    from aim_lightning.cli.build.trainer_cli import quiet

    quiet()
    signals.install()
    try:
        return score(config)
    except Stopped as stop:
        log(f"stopped by {signals.NAMES[stop.code]} without results; run the same command again")
        # The launcher takes its exit code from rank 0.
        return signals.EXITS[stop.code] if is_rank_zero() else 0


def score(config: Config) -> int:
    """Validate as a part of `fit`, which handles a stop itself.

    Raises:
        Stopped: a signal arrived between two batches; there are no results.
    """
    from aim_lightning.callbacks.training.stop_request import ValidationStop
    from aim_lightning.checkpoint.io import read_checkpoint
    from aim_lightning.cli.build.loggers import connect
    from aim_lightning.cli.build.trainer_cli import build, hardware_of, scored_weights
    from aim_lightning.runs.results import record

    directory = config.run_directory
    checkpoint = newest_checkpoint(directory.path)
    content = read_checkpoint(checkpoint)
    _check_model(content, config, checkpoint)
    log(f"validating {checkpoint}")
    step = content["trainer"]["global_step"]
    cli = build(config, purge_step=None, guards=[ValidationStop(step)])
    disable_signal_handlers(cli.trainer)
    set_logged_step(cli.trainer, step)
    connect(cli.trainer.loggers, config.run_directory)
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), verbose=False)
    metrics = {name.removeprefix("metrics/"): float(value) for name, value in cli.trainer.callback_metrics.items()}
    if is_rank_zero():
        callbacks = cli.named_callbacks.items()
        facts = {"checkpoint": checkpoint.name, **scored_weights(cli)}
        facts |= {name: callback.protocol() for name, callback in callbacks if hasattr(callback, "protocol")}
        # Logged first: the directory may belong to another user.
        for name, value in metrics.items():
            log(f"  {name:36s}{value:z10.4f}")
        record(directory, "validate", step, facts, metrics, hardware_of(cli))
        target = "tokenize" if config.is_tokenizer else "sample"
        log(f"results: {directory.results}")
        log_next(f"make {target} {directory.variables}")
    return 0


def _check_model(content: dict[str, Any], config: Config, path: Path) -> None:
    """Raise UserError for a checkpoint of another network, or without the averaged weights that EMA needs."""
    models = [values["model"] for values in (content["configuration"], config.values)]
    sizes = [{"class_path": model["class_path"], "network": model["init_args"]["network"]} for model in models]
    if sizes[0] != sizes[1]:
        changes = differences(*({"model": size} for size in sizes))
        raise UserError(f"{path} is of another model: {', '.join(changes.values())}; give the options of its training")
    if config.values["callbacks"].get("ema") and content["ema"] is None:
        raise UserError(f"{path} contains no averaged weights; score the trained ones with --callbacks.ema null")
