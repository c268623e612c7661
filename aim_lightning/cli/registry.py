"""The commands of `aim-lightning`; a new command is one file in `commands` and its name here."""

import importlib

from aim_lightning.cli.command import Command

NAMES = ("fit", "validate", "sample", "tokenize", "evaluate", "sweep", "follow", "reproduce", "table", "weights")
NAMES += ("download", "shards", "dataset", "plan", "slurm", "config", "doctor")
FIELDS = ("HELP", "run", "add_options", "NEEDS_CONFIG", "without_run", "UNUSED", "ACTIONS")


def load(name: str) -> Command:
    """Import the module of a command; the names of FIELDS that it defines become the fields of the command."""
    module = importlib.import_module(f"aim_lightning.cli.commands.{name}")
    return Command(**{item.lower(): getattr(module, item) for item in FIELDS if hasattr(module, item)})


COMMANDS = {name: load(name) for name in NAMES}
