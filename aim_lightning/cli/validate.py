"""`aim-lightning validate`: score the newest checkpoint of a run."""

import argparse

from aim_lightning.cli.build import build, quiet, run_directory
from aim_lightning.config import Document
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.runs.results import record
from aim_lightning.utils.process import global_rank, say


def run(document: Document, options: argparse.Namespace) -> int:
    """Loss and every metric callback on the whole validation set; results.json gets the numbers."""
    quiet()
    directory = run_directory(document)
    checkpoint = newest_checkpoint(directory.path)
    say(f"validating {checkpoint}")
    cli = build(document)
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), verbose=False)
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    if global_rank() == 0:
        protocol = {
            name: callback.protocol() for name, callback in cli.named_callbacks.items() if hasattr(callback, "protocol")
        }
        names = {name.removeprefix("metrics/"): value for name, value in metrics.items()}
        record(directory, {**protocol, "checkpoint": checkpoint.name}, names)
        for name, value in names.items():
            say(f"  {name:36s}{value:10.4f}")
        say(f"results: {directory.results}\nnext: make sample EXP={directory.experiment} RUN={directory.run}")
    return 0
