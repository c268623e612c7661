"""Help screens, from the same source as the checks: signatures and docstrings, read without importing."""

import argparse
import shutil
import textwrap

from aim_lightning.cli.commands import COMMANDS, SECTIONS, Command
from aim_lightning.config import Document
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


def command_help(name: str, command: Command, parser: argparse.ArgumentParser, document: Document | None) -> str:
    """What `aim-lightning COMMAND --help` prints."""
    lines = [f"usage: {USAGE.replace('COMMAND', name)}", "", command.help, "", "options:"]
    for action in parser._actions:
        flag = f"{action.option_strings[0]} {action.metavar or action.dest.upper()}"
        lines += _entry(flag, action.help or "")
    lines += _entry("--config FILE", "YAML file; repeatable, later files win") if command.needs_config else []
    lines += _entry("--help", "this text; with --config FILE it lists every option")
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
