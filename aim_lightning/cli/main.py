"""Entry point of `aim-lightning`. Help and mistakes in the configuration answer before torch is imported."""

import argparse
import importlib
import sys
from pathlib import Path

from aim_lightning.cli.commands import COMMANDS, SECTIONS
from aim_lightning.cli.files import check_files
from aim_lightning.cli.help import command_help, program_help
from aim_lightning.config import Document, compose
from aim_lightning.config.arguments import Arguments, split
from aim_lightning.config.schema import check
from aim_lightning.config.sections import Leaf
from aim_lightning.utils.errors import UserError

DEFAULTS = Path(__file__).with_name("defaults.yaml")
# Their values stay the text that was typed: a run may be called 001.
TEXTS = {name for name, section in SECTIONS.items() if isinstance(section, Leaf) and section.annotation != "int"}


class Options(argparse.ArgumentParser):
    """argparse with our errors: one line instead of a usage text."""

    def error(self, message: str) -> None:
        raise UserError(f"command line: {message}; see aim-lightning {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _mistake(error: BaseException | None) -> str | None:
    """Message of the UserError behind an exception: libraries wrap what a constructor or a loader worker raises."""
    while error is not None:
        if isinstance(error, UserError):
            # A worker's error arrives with its traceback in front; the message is the last line.
            return str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]
        error = error.__cause__ or error.__context__
    return None


def run(argv: list[str]) -> int:
    """Dispatch to cli/<command>.py, whose `run(document, options)` gives the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(program_help())
        return 0
    name, command = argv[0], COMMANDS.get(argv[0])
    if command is None:
        raise UserError(f"there is no command {name!r}; use one of {', '.join(COMMANDS)}")
    arguments = split(argv[1:], plain=SECTIONS)
    parser = Options(prog=name, add_help=False, allow_abbrev=False)
    if command.add_options:
        command.add_options(parser)
    if arguments.help:
        document = read(arguments) if arguments.configs else None
        print(command_help(name, command, parser, document))
        return 0
    options = parser.parse_args(arguments.rest)
    document = _document(name, arguments) if command.needs_config else None
    return importlib.import_module(f"aim_lightning.cli.{name}").run(document, options)


def read(arguments: Arguments) -> Document:
    """Compose defaults, files and overrides."""
    return compose([DEFAULTS, *arguments.configs], arguments.overrides, texts=TEXTS)


def _document(name: str, arguments: Arguments) -> Document:
    if not arguments.configs:
        raise UserError(f"{name} needs a configuration: --config experiments/NAME.yaml")
    document = read(arguments)
    check(document, SECTIONS)
    check_files(name, document.values)
    return document
