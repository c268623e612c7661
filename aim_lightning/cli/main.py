"""Entry point of `aim-lightning`. Help screens answer before torch is imported."""

import argparse
import importlib.metadata
import sys

from aim_lightning.cli.arguments import HELP, Arguments, split
from aim_lightning.cli.build.input_checks import check_files
from aim_lightning.cli.common_options import Parser
from aim_lightning.cli.config import SECTIONS, Config, read, read_and_check
from aim_lightning.cli.help import actions_help, command_help, program_help, section_help
from aim_lightning.cli.registry import Command, commands
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.utils import errors
from aim_lightning.utils.errors import TransientError, UserError
from aim_lightning.utils.logging import show_log
from aim_lightning.utils.process import node_name, rank

# They answer without importing torch; `slurm submit` has checked the configuration of their job.
UNCHECKED = ("slurm status", "slurm cancel", "slurm started", "slurm ended")
LOST = "another rank exited; see its error above. Aborting this rank."


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
        if mistake is None and errors.lost_rank(error):
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
    if isinstance(error, OSError) and (mistake := errors.disk_mistake(error)):
        return mistake
    # The latter is the error of EarlyStopping for a metric that is not logged.
    if type(error).__name__ == "MisconfigurationException" or str(error).startswith("Early stopping conditioned on"):
        return UserError(f"trainer: {' '.join(str(error).split())}")
    if mistake := errors.killed_worker(error) or errors.memory_mistake(error):
        return mistake
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error and errors.one_line(error)


def run(argv: list[str]) -> int:
    """Run the command that the first words name; return its exit code."""
    if not argv or argv[0] in (*HELP, "help"):
        print(program_help())
        return 0
    name, *rest = argv
    if name == "--version":
        print(f"aim-lightning {importlib.metadata.version('aim_lightning')}")
        return 0
    if (command := commands().get(name)) is None:
        hint = errors.suggest(name, commands()) or f"; use one of {', '.join(commands())}"
        raise UserError(f"there is no command {name!r}{hint}")
    # `runs` is a command by itself; the others with actions need one.
    if command.actions and (command.run is None or (rest[:1] and rest[0] in command.actions)):
        if not rest or rest[0] in HELP:
            print(actions_help(name, command))
            return 0
        if rest[0] not in command.actions:
            raise UserError(f"{name} has no action {rest[0]!r}; use one of {', '.join(command.actions)}")
        command, name, rest = command.actions[rest[0]], f"{name} {rest[0]}", rest[1:]
    # Dotted overrides are taken out first: argparse must not see options that it does not know.
    arguments = split(rest, plain=SECTIONS if command.needs_config else ())
    parser = Parser(prog=f"aim-lightning {name}", add_help=False, allow_abbrev=False)
    command.add_options(parser)
    if arguments.help:
        print(_help(command, arguments, parser))
        return 0
    options = parser.parse_args(arguments.rest)
    lists = {option: value if isinstance(value, list) else [value] for option, value in vars(options).items()}
    if empty := [option for option, values in lists.items() if "" in values]:
        dashes = "--" if f"--{empty[0]}" in parser.format_usage() else ""
        raise UserError(f"command line: {dashes}{empty[0]} is empty; give a value, or leave it out for the default")
    # Arrays compose further configurations from these, and messages repeat the command.
    options.arguments = arguments
    if not command.needs_config:
        return command.run(None, options)
    config = _configuration(name, command, arguments, options)
    try:
        return command.run(config, options)
    except Exception as error:
        if mistake := _mistake(error):  # a constructor does not know which file set its argument
            mistake.args = (config.blame(str(mistake)),)
        raise


def _help(command: Command, arguments: Arguments, parser: Parser) -> str:
    section, config = arguments.help_section, read(arguments) if command.needs_config else None
    if not section:
        return command_help(command, parser, config if arguments.configs else None)
    if section not in SECTIONS:
        raise UserError(f"command line: {section} is not a known section{errors.suggest(section, SECTIONS)}")
    return section_help([section], config)


def _configuration(name: str, command: Command, arguments: Arguments, options: argparse.Namespace) -> Config:
    """Return the checked configuration. Without a run, experiment, model and data may be missing."""
    without_run = any(getattr(options, name) for name in command.without_run)
    if not arguments.configs and not without_run:
        raise UserError(f"{name} needs a configuration: --config experiments/NAME.yaml")
    config = read_and_check(arguments, SECTIONS if without_run else command.unused, classes=name not in UNCHECKED)
    if not without_run:
        check_files(name, config.values, getattr(options, "checkpoint", None))
    return config
