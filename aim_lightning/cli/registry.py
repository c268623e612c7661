"""The commands of `aim-lightning`; a new command is one file in `commands` and its name here."""

import importlib
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

NAMES = ("fit", "validate", "sample", "app", "tokenize", "evaluate", "sweep", "suite", "follow", "reproduce", "table")
NAMES += ("weights", "download", "shards", "dataset", "plan", "profile", "runs", "slurm", "config", "doctor")
# The names of a command's module that become the fields of its `Command`.
FIELDS = ("HELP", "run", "add_options", "NEEDS_CONFIG", "WITHOUT_RUN", "UNUSED", "ACTIONS")


@dataclass(frozen=True)
class Command:
    """A command, or an action of a command.

    Args:
        help: one line for the help screen.
        run: takes the configuration (None without one) and the options; returns the exit code.
        add_options: adds options to a parser.
        needs_config: True if the command takes --config.
        without_run: names of options, any of which makes an experiment unnecessary.
        unused: sections that may be missing.
        actions: second words of the command line; most commands with actions have no `run`.
    """

    help: str
    run: Callable | None = None
    add_options: Callable[[ArgumentParser], None] = lambda parser: None
    needs_config: bool = True
    without_run: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    actions: "dict[str, Command]" = field(default_factory=dict)


@cache
def commands() -> dict[str, Command]:
    """Return the commands by name. The modules of commands with actions import this one."""
    modules = {name: importlib.import_module(f"aim_lightning.cli.commands.{name}") for name in NAMES}
    return {
        name: Command(**{item.lower(): value for item, value in vars(module).items() if item in FIELDS})
        for name, module in modules.items()
    }
