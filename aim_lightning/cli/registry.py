"""The commands of `aim-lightning`; a new command is one file in `commands` and its name here."""

import importlib
from dataclasses import fields

from aim_lightning.cli.command import Command

NAMES = ("fit", "validate", "sample", "tokenize", "evaluate", "sweep", "follow", "reproduce", "table", "weights")
NAMES += ("download", "shards", "dataset", "plan", "slurm", "config", "doctor")


def load(name: str) -> Command:
    """Import the module of a command; its names `HELP`, `run`, `add_options`, `NEEDS_CONFIG` … become the fields."""
    module = importlib.import_module(f"aim_lightning.cli.commands.{name}")
    names = {name.lower(): value for name, value in vars(module).items()}
    return Command(**{item.name: names[item.name] for item in fields(Command) if item.name in names})


COMMANDS = {name: load(name) for name in NAMES}
