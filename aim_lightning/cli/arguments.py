"""Split a command line into configuration files, overrides and the rest."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from aim_lightning.utils.errors import UserError

HELP = ("-h", "--help")


@dataclass
class Arguments:
    """The parts of a command line.

    Args:
        configs: --config files in order.
        overrides: (dotted key, text) in order.
        rest: everything else in order, for the command's own parser.
        help: True after -h or --help.
        help_section: the word after --help; empty without one.
    """

    configs: list[Path] = field(default_factory=list)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    help: bool = False
    help_section: str = ""


def split(argv: list[str], plain: Collection[str] = ()) -> Arguments:
    """Split a command line. A value may start with one minus sign; a value that starts with two needs `=`.

    Args:
        argv: the arguments after the command's name.
        plain: names of sections that are single values (`--experiment NAME`); they become overrides too.

    Raises:
        UserError: --config or an override has no value.
    """
    result = Arguments()
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--":
            result.rest += [word, *words]
            break
        if word in HELP:
            result.help = True
            result.help_section = words.pop(0) if words and not words[0].startswith("-") else ""
            continue
        if not word.startswith("--") or not (name == "config" or name in plain or "." in name):
            result.rest.append(word)
            continue
        if not equals:
            # One minus sign may start a negative number.
            if not words or words[0] in HELP or words[0].startswith("--"):
                raise UserError(f"command line: --{name} needs a value; write --{name} VALUE or --{name}=VALUE")
            value = words.pop(0)
        if name != "config":
            result.overrides.append((name, value))
        elif value:
            result.configs.append(Path(value))
        else:
            raise UserError("command line: --config is empty; give the path of a YAML file")
    return result
