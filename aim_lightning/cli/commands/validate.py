"""`aim-lightning validate`: score the newest checkpoint of a run."""

import argparse
from pathlib import Path

from aim_lightning.cli.config import Config
from aim_lightning.cluster import signals
from aim_lightning.cluster.signals import Stopped
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.runs.resume_policy import differences
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.lightning_private import disable_signal_handlers, set_logged_step
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import is_rank_zero

HELP = "score the newest checkpoint (EMA weights) and write results.json"


def run(document: Config, options: argparse.Namespace) -> int:
    """Loss and every metric callback on the whole validation set; results.json gets the numbers."""
    from aim_lightning.cli.build.trainer_cli import quiet

    quiet()
    signals.install()
    try:
        return score(document)
    except Stopped as stop:
        log(f"stopped by {signals.NAMES[stop.code]}, no results were recorded; the same command begins anew")
        return signals.EXITS[stop.code] if is_rank_zero() else 0  # the first process to end takes the others along


def score(document: Config) -> int:
    """The same as a part of `fit`, which knows what becomes of a job that is stopped.

    Raises:
        Stopped: by a signal, between two batches; nothing has been recorded.
    """
    from aim_lightning.callbacks.training.stop_request import ValidationStop
    from aim_lightning.checkpoint.io import read_checkpoint
    from aim_lightning.cli.build.trainer_cli import build, hardware_of, run_directory, scored_weights_hash, weights_kind
    from aim_lightning.runs.results import record

    directory = run_directory(document)
    checkpoint = newest_checkpoint(directory.path)
    content = read_checkpoint(checkpoint)
    _check_belongs(content, document, checkpoint)
    log(f"validating {checkpoint}")
    step = content["trainer"]["global_step"]
    cli = build(document, purge_step=None, guards=[ValidationStop(step)])
    disable_signal_handlers(cli.trainer)
    # Loggers put the results at the step of the checkpoint, which training logged one step earlier.
    set_logged_step(cli.trainer, max(step - 1, 0))
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), verbose=False)
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    if is_rank_zero():
        callbacks = cli.named_callbacks.items()
        protocol = {name: callback.protocol() for name, callback in callbacks if hasattr(callback, "protocol")}
        names = {name.removeprefix("metrics/"): value for name, value in metrics.items()}
        facts = {
            "checkpoint": checkpoint.name,
            "weights": weights_kind(cli),
            "weights_sha256": scored_weights_hash(cli),
        }
        record(directory, "validate", step, {**facts, **protocol}, names, hardware_of(cli))
        for name, value in names.items():
            log(f"  {name:36s}{value:z10.4f}")
        log(f"results: {directory.results}\nnext: make {_next(document)}")
    return 0


def _next(document: Config) -> str:
    values = document.values
    target = "tokenize" if values["model"]["class_path"].endswith("TokenizerModule") else "sample"
    return f"{target} EXP={values['experiment']} RUN={values['run']}"


def _check_belongs(content: dict, document: Config, path: Path) -> None:
    """The network must be the checkpoint's, and averaged weights there when they are asked for."""
    sizes = [
        (values["model"]["class_path"], values["model"]["init_args"]["network"])
        for values in (content["configuration"], document.values)
    ]
    if sizes[0] != sizes[1]:
        changes = differences(*({"model": {"class_path": c, "network": n}} for c, n in sizes))
        raise UserError(f"{path} is of another model: {'; '.join(changes.values())}")
    if document.values["callbacks"].get("ema") and content["ema"] is None:
        raise UserError(f"{path} holds no averaged weights; score the weights themselves with --callbacks.ema null")
