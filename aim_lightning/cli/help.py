"""Help screens, from the same source as the checks: signatures and docstrings, read without importing."""

import argparse
import shutil
import textwrap

from aim_lightning.cli.config import Config
from aim_lightning.cli.registry import COMMANDS, SECTIONS, Command
from aim_lightning.config.describe import describe
from aim_lightning.config.sections import Leaf

USAGE = "aim-lightning COMMAND --config FILE [--config FILE …] [--section.option VALUE …]"


def program_help() -> str:
    """What `aim-lightning --help` prints."""
    commands = "\n".join(f"  {name:10s} {command.help}" for name, command in COMMANDS.items())
    return (
        f"usage: {USAGE}\n\n"
        "AiM with PyTorch Lightning: train tokenizers and autoregressive Mamba-2 image generators.\n\n"
        f"commands:\n{commands}\n\n"
        "aim-lightning COMMAND --help shows a command's options; with --config FILE also every option of the\n"
        "classes that the file chooses, with its present value."
    )


def actions_help(name: str, command: Command) -> str:
    """What `aim-lightning COMMAND --help` prints where COMMAND has actions."""
    actions = "\n".join(f"  {action:10s} {what.help}" for action, what in command.actions.items())
    return (
        f"usage: aim-lightning {name} ACTION …\n\n{command.help}\n\nactions:\n{actions}\n\n"
        f"aim-lightning {name} ACTION --help shows an action's options."
    )


def command_help(name: str, command: Command, parser: argparse.ArgumentParser, document: Config | None) -> str:
    """What `aim-lightning COMMAND --help` prints."""
    given = "".join(f" {action.metavar}" for action in parser._actions if not action.option_strings)
    usage = USAGE if command.needs_config else "aim-lightning COMMAND [--option VALUE …]"
    lines = [f"usage: {usage.replace('COMMAND', name + given)}", "", command.help, "", "options:"]
    for action in parser._actions:
        what = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
        flag = " ".join([*action.option_strings[:1], what])
        lines += _entry(flag, action.help or "")
    lines += _entry("--config FILE", "YAML file; repeatable, later files win") if command.needs_config else []
    listed = "; with --config FILE it lists every option" if command.needs_config else ""
    lines += _entry("--help", f"this text{listed}")
    if command.needs_config:
        lines += ["", "sections:"]
        for section, what in SECTIONS.items():
            lines += _entry(f"--{section}{' VALUE' if isinstance(what, Leaf) else '.OPTION VALUE'}", what.description)
    if document is not None:
        lines += ["", "options of the classes in this configuration:"]
        for option in (row for section in SECTIONS for row in describe(section, SECTIONS[section], document)):
            lines += _entry(f"--{option.option} [{option.type}] {option.value}", option.description)
    return "\n".join(lines)


def _entry(flag: str, text: str) -> list[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    body = textwrap.wrap(text, width - 28) or [""]
    head = f"  {flag}"
    if len(head) > 26:
        return [head, *(f"{'':28s}{line}" for line in body if line)]
    return [f"{head:28s}{body[0]}", *(f"{'':28s}{line}" for line in body[1:])]
