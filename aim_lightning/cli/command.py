"""The parts of one command of `aim-lightning`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Command:
    """A command, or an action of a command.

    Args:
        help: one line for the help screen.
        run: takes the configuration (None without one) and the options; returns the exit code.
        add_options: adds options to a parser.
        needs_config: True if the command takes --config.
        without_run: returns True for options with which no experiment is needed.
        unused: sections that may be missing.
        actions: second words of the command line; a command with actions has no `run`.
    """

    help: str
    run: Callable | None = None
    add_options: Callable[[ArgumentParser], None] = lambda parser: None
    needs_config: bool = True
    without_run: Callable[[Namespace], bool] = lambda options: False
    unused: tuple[str, ...] = ()
    actions: "dict[str, Command]" = field(default_factory=dict)
