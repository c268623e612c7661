"""Command line of the modules that write a data set."""

import sys
from collections.abc import Callable

from jsonargparse import auto_cli

from aim_lightning.utils.errors import UserError


def run_script(function: Callable[..., None], arguments: list[str] | None = None) -> int:
    """Call a function with options of the command line and return the exit code: 0, or 2 after a UserError.

    Args:
        function: its parameters are the options.
        arguments: command-line arguments; None = sys.argv.
    """
    try:
        auto_cli(function, args=arguments, as_positional=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
