"""Help screens: commands and their options, and the options of every class that a configuration names."""

import argparse
import dataclasses
import inspect
import shutil
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from aim_lightning.cli.common_options import Parser
from aim_lightning.cli.config import SECTIONS
from aim_lightning.cli.registry import Command, commands
from aim_lightning.config.check import Section
from aim_lightning.config.compose import ComposedConfig, is_class
from aim_lightning.config.signature import dataclass_of, find_class, parameters, type_text
from aim_lightning.config.yaml import inline

USAGE = "--config FILE [--config FILE …] [--section.option VALUE …]"


class Option(NamedTuple):
    """One row of a help screen; `value` is the present value, else the default, else 'required'."""

    option: str
    type: str
    value: str
    description: str


Options = Iterator[Option]


def _formatter(prog: str) -> argparse.HelpFormatter:
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    return argparse.HelpFormatter(prog, max_help_position=28, width=width)


def _overview(usage: str, about: str, title: str, entries: dict[str, Command], *hints: str) -> str:
    lines = [f"usage: aim-lightning {usage}", "", about, "", f"{title}:"]
    return "\n".join([*lines, *(f"  {name:10s} {command.help}" for name, command in entries.items()), "", *hints])


def program_help() -> str:
    """Return the text of `aim-lightning --help`."""
    about = "AiM with PyTorch Lightning: train tokenizers and autoregressive Mamba-2 image generators."
    hint = "aim-lightning COMMAND --help shows the options of a command. With --config FILE it also lists every option"
    more = "of the classes that the file names, with its present value; --help SECTION lists one section only."
    return _overview(f"COMMAND {USAGE}", about, "commands", commands(), hint, more)


def actions_help(name: str, command: Command) -> str:
    """Return the text of `aim-lightning COMMAND --help` for a command with actions."""
    hint = f"aim-lightning {name} ACTION --help shows an action's options."
    return _overview(f"{name} ACTION …", command.help, "actions", command.actions, hint)


def command_help(command: Command, parser: Parser, config: ComposedConfig | None) -> str:
    """Return the text of `aim-lightning COMMAND --help`; with a configuration, also the options of all sections."""
    parser.formatter_class, parser.description = _formatter, command.help
    # Private, but argparse has no other list of a parser's arguments.
    positionals = "".join(f" {action.metavar}" for action in parser._actions if not action.option_strings)
    parser.usage = f"{parser.prog}{positionals} [--option VALUE …]"
    if not command.needs_config:
        parser.add_argument("--help", action="store_true", help="this text")
        return parser.format_help().rstrip()
    parser.usage = f"{parser.prog}{positionals} {USAGE}"
    parser.add_argument("--config", metavar="FILE", help="YAML file, or pkg:NAME; repeatable, later files win")
    options = "this text; with --config FILE it lists every option, or one section only"
    parser.add_argument("--help", metavar="[SECTION]", help=options)
    group = parser.add_argument_group("sections")
    for name, section in SECTIONS.items():
        group.add_argument(f"--{name}{'' if section.type else '.OPTION'}", metavar="VALUE", help=section.description)
    text = parser.format_help().rstrip()
    if config is not None:
        text += f"\n\noptions of the classes in this configuration:\n{section_help(SECTIONS, config)}"
    return text


def section_help(names: Iterable[str], config: ComposedConfig) -> str:
    """Return the lines about the options of sections."""
    formatter = _formatter("")
    # The formatter alone: a parser would refuse two options of one name.
    formatter._indent()
    for row in (row for name in names for row in describe(name, SECTIONS[name], config)):
        # Docstrings may contain percent signs, which argparse would expand.
        text, value = row.description.replace("%", "%%"), f"[{row.type}] {row.value}"
        formatter.add_argument(argparse.Action([f"--{row.option}"], row.option, metavar=value, help=text))
    return formatter.format_help().strip("\n")


def describe(name: str, section: Section, config: ComposedConfig) -> Options:
    """Yield the options of a section as overrides write them, without `init_args`.

    Raises:
        UserError: a class that the configuration names does not exist.
    """
    value, provided = config.values.get(name), section.provided
    if section.named:
        for entry, item in (value or {}).items():
            if is_class(item):
                yield from _object(config, f"{name}.{entry}", item, provided)
            else:
                yield Option(f"{name}.{entry}", "class", inline(item), "switched off")
    elif section.fixed:
        yield from _options(config, name, find_class(section.fixed, name), value or {}, provided)
    elif is_class(value):
        yield from _object(config, name, value, provided)
    elif section.type:
        current = inline(value) if name in config.values else "required" if section.required else ""
        yield Option(name, type_text(section.type), current, section.description)
    else:
        yield Option(f"{name}.class_path", "class", "required", section.description)


def _object(config: ComposedConfig, key: str, value: dict[str, Any], provided: Collection[str] = ()) -> Options:
    """Yield the rows of one object: its class, then the options of that class."""
    cls = find_class(value["class_path"], f"{config.origin(f'{key}.class_path')}: {key}.class_path")
    yield Option(f"{key}.class_path", "class", value["class_path"], (inspect.getdoc(cls) or "").partition("\n\n")[0])
    yield from _options(config, key, cls, value.get("init_args") or {}, provided)


def _options(config: ComposedConfig, key: str, cls: Any, values: dict, provided: Collection[str] = ()) -> Options:
    # A signature shows a default_factory as a placeholder, so that its value is made here.
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    factories = {field.name: field.default_factory for field in fields if callable(field.default_factory)}
    for name, parameter in (parameters(cls) or {}).items():
        value, option = values.get(name), f"{key}.{name}"
        nested = dataclass_of(parameter.annotation)
        if name in provided:
            continue
        if is_class(value):
            yield from _object(config, option, value)
        elif nested and (isinstance(value, dict) or nested is not cls):  # a class that contains itself has no end
            yield from _options(config, option, nested, value if isinstance(value, dict) else {})
        else:
            default = factories[name]() if name in factories else parameter.default
            required = name not in values and default is inspect.Parameter.empty
            current = "required" if required else inline(values.get(name, default))
            yield Option(option, type_text(parameter.annotation), current, " ".join((parameter.doc or "").split()))
