"""`aim-lightning fit`: train, or continue where the run stopped."""

import argparse

from aim_lightning.cli.common_options import add_shared
from aim_lightning.cli.config import Config
from aim_lightning.cluster import signals

HELP = "train, or continue an unfinished run"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the option --allow_changes."""
    add_shared(parser, "allow_changes")


def run(config: Config, options: argparse.Namespace) -> int:
    """Train, and return 0 once training is complete; docs/slurm.md lists the other exit codes."""
    from aim_lightning.cli.build.loggers import connect
    from aim_lightning.cli.build.trainer_cli import build
    from aim_lightning.cli.fit_lifecycle import FitLifecycle
    from aim_lightning.cli.fit_summary import score_finished, summarise

    with FitLifecycle(config, options) as lifecycle:
        decision = lifecycle.start()
        if decision.action == "finished":
            return score_finished(config, decision.step)
        # TensorBoard drops what earlier processes logged after the checkpoint.
        cli = build(config, decision.step + 1, lifecycle.callbacks, lifecycle.micro_batch_size)
        lifecycle.prepare(cli)
        connect(cli.trainer.loggers, config.run_directory, config.values)
        with signals.graceful_interrupt():
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=decision.checkpoint)
        if cli.trainer.is_global_zero:
            summarise(cli, config)
    return lifecycle.exit_code
