"""Entry point of `aim-lightning`. Help screens answer before torch is imported."""

import argparse
import sys

from aim_lightning.cli.arguments import Arguments, split
from aim_lightning.cli.build.input_checks import check_files
from aim_lightning.cli.command import Command
from aim_lightning.cli.config import Config, read, read_and_check
from aim_lightning.cli.help import actions_help, command_help, program_help, section_help
from aim_lightning.cli.registry import COMMANDS
from aim_lightning.cli.sections import SECTIONS
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.config.signature import suggest
from aim_lightning.utils.errors import TransientError, UserError, disk_mistake, killed_worker, lost_rank, one_line
from aim_lightning.utils.logging import show_log
from aim_lightning.utils.process import node_name, rank

# They answer without importing torch; `slurm submit` has checked the configuration of their job.
UNCHECKED = ("slurm status", "slurm cancel", "slurm started", "slurm ended")
LOST = "another rank exited; see its error above. Aborting this rank."


class Options(argparse.ArgumentParser):
    """An argument parser that reports an error in one line instead of a usage text."""

    def error(self, message: str) -> None:
        raise UserError(f"command line: {message}; see aim-lightning {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Returns:
        0, 1 if another rank exited, 2 after a user's mistake, 74 for a full disk, 130 after Ctrl-C.
    """
    show_log()
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None and lost_rank(error):
            print(f"error: node {node_name()}, rank {rank()}: {LOST}", file=sys.stderr)
            return 1
        if mistake is None:
            raise
        job = Job.current()
        where = f"node {job.node}: " if job and (job.tasks or 1) > 1 and job.node not in str(mistake) else ""
        print(f"error: {where}{mistake}", file=sys.stderr)
        return TransientError.exit_code if isinstance(mistake, TransientError) else 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _mistake(error: BaseException | None) -> UserError | None:
    """Return the user's mistake behind an exception, None if the exception is a defect of this package.

    Libraries wrap the exceptions of constructors and loader workers. Some errors of Lightning are mistakes too.
    """
    if isinstance(error, OSError) and (mistake := disk_mistake(error)):
        return mistake
    if type(error).__name__ == "MisconfigurationException":
        return UserError(f"trainer: {' '.join(str(error).split())}")
    if worker := killed_worker(error):
        return worker
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error and one_line(error)


def run(argv: list[str]) -> int:
    """Run the command that the first words name; return its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(program_help())
        return 0
    name, command = argv[0], COMMANDS.get(argv[0])
    if command is None:
        raise UserError(f"there is no command {name!r}; use one of {', '.join(COMMANDS)}")
    rest = argv[1:]
    if command.actions:
        action, rest = _action(name, command, rest)
        if action is None:
            print(actions_help(name, command))
            return 0
        name, command = f"{name} {action}", command.actions[action]
    arguments = split(rest, plain=SECTIONS if command.needs_config else ())
    parser = Options(prog=name, add_help=False, allow_abbrev=False)
    command.add_options(parser)
    if arguments.help:
        section, config = arguments.help_section, read(arguments) if command.needs_config else None
        if section and section not in SECTIONS:
            raise UserError(f"command line: {section} is not a known section{suggest(section, SECTIONS)}")
        listed = config if arguments.configs else None
        print("\n".join(section_help(section, config)) if section else command_help(name, command, parser, listed))
        return 0
    options = parser.parse_args(arguments.rest)
    options.given = arguments
    config = _configuration(name, command, arguments, options) if command.needs_config else None
    return command.run(config, options)


def _action(name: str, command: Command, argv: list[str]) -> tuple[str | None, list[str]]:
    """Return the action of a command and the words after it; None if the help screen is asked for."""
    if not argv or argv[0] in ("-h", "--help"):
        return None, []
    if argv[0] not in command.actions:
        raise UserError(f"{name} has no action {argv[0]!r}; use one of {', '.join(command.actions)}")
    return argv[0], argv[1:]


def _configuration(name: str, command: Command, arguments: Arguments, options: argparse.Namespace) -> Config:
    """Return the checked configuration. Without a run, experiment, model and data may be missing."""
    without_run = command.without_run(options)
    if not arguments.configs and not without_run:
        raise UserError(f"{name} needs a configuration: --config experiments/NAME.yaml")
    config = read_and_check(arguments, SECTIONS if without_run else command.unused, classes=name not in UNCHECKED)
    if not without_run:
        check_files(name, config.values, getattr(options, "checkpoint", None))
    return config
