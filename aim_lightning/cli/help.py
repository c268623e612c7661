"""Help screens: commands and their options, and the options of every class that a configuration names."""

import argparse
import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from aim_lightning.cli.command import Command
from aim_lightning.cli.registry import COMMANDS
from aim_lightning.cli.sections import SECTIONS
from aim_lightning.config import ComposedConfig
from aim_lightning.config.check import ClassSection, NamedSection, ScalarSection, Section, is_class
from aim_lightning.config.signature import dataclass_of, find_class, parameters, type_text
from aim_lightning.config.yaml import inline

USAGE = "aim-lightning COMMAND --config FILE [--config FILE …] [--section.option VALUE …]"


class Option(NamedTuple):
    """One row of a help screen; `value` is the present value, else the default, else 'required'."""

    option: str
    type: str
    value: str
    description: str


def program_help() -> str:
    """Return the text of `aim-lightning --help`."""
    commands = "\n".join(f"  {name:10s} {command.help}" for name, command in COMMANDS.items())
    return (
        f"usage: {USAGE}\n\n"
        "AiM with PyTorch Lightning: train tokenizers and autoregressive Mamba-2 image generators.\n\n"
        f"commands:\n{commands}\n\n"
        "aim-lightning COMMAND --help shows the options of a command. With --config FILE it also lists every option\n"
        "of the classes that the file names, with its present value; --help SECTION lists one section only."
    )


def actions_help(name: str, command: Command) -> str:
    """Return the text of `aim-lightning COMMAND --help` for a command with actions."""
    actions = "\n".join(f"  {action:10s} {entry.help}" for action, entry in command.actions.items())
    return (
        f"usage: aim-lightning {name} ACTION …\n\n{command.help}\n\nactions:\n{actions}\n\n"
        f"aim-lightning {name} ACTION --help shows an action's options."
    )


def command_help(name: str, command: Command, parser: argparse.ArgumentParser, config: ComposedConfig | None) -> str:
    """Return the text of `aim-lightning COMMAND --help`; with a configuration, also the options of all sections."""
    positionals = "".join(f" {action.metavar}" for action in parser._actions if not action.option_strings)
    usage = USAGE if command.needs_config else "aim-lightning COMMAND [--option VALUE …]"
    lines = [f"usage: {usage.replace('COMMAND', name + positionals)}", "", command.help, "", "options:"]
    for action in parser._actions:
        value = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
        lines += _entry(" ".join([*action.option_strings[:1], value]), action.help or "")
    if command.needs_config:
        lines += _entry("--config FILE", "YAML file; repeatable, later files win")
        lines += _entry("--help [SECTION]", "this text; with --config FILE it lists every option, or one section only")
        lines += ["", "sections:"]
        for section, kind in SECTIONS.items():
            value = " VALUE" if isinstance(kind, ScalarSection) else ".OPTION VALUE"
            lines += _entry(f"--{section}{value}", kind.description)
    else:
        lines += _entry("--help", "this text")
    if config is not None:
        lines += ["", "options of the classes in this configuration:"]
        lines += [line for section in SECTIONS for line in section_help(section, config)]
    return "\n".join(lines)


def section_help(name: str, config: ComposedConfig) -> list[str]:
    """Return the lines about the options of one section."""
    rows = describe(name, SECTIONS[name], config)
    return [line for row in rows for line in _entry(f"--{row.option} [{row.type}] {row.value}", row.description)]


def _entry(flag: str, text: str) -> list[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    body = textwrap.wrap(text, width - 28) or [""]
    head = f"  {flag}"
    if len(head) > 26:
        return [head, *(f"{'':28s}{line}" for line in body if line)]
    return [f"{head:28s}{body[0]}", *(f"{'':28s}{line}" for line in body[1:])]


def describe(name: str, section: Section, config: ComposedConfig) -> Iterator[Option]:
    """Yield the options of a section as overrides write them, without `init_args`.

    Raises:
        UserError: a class that the configuration names does not exist.
    """
    value = config.values.get(name)
    default = section.default if isinstance(section, ClassSection) else None
    if isinstance(section, NamedSection):
        for entry, item in (value or {}).items():
            if is_class(item):
                yield from _object(config, f"{name}.{entry}", item, section.provided)
            else:
                yield Option(f"{name}.{entry}", "class", inline(item), "switched off")
    elif isinstance(section, ClassSection) and section.fixed:
        yield from _options(config, name, find_class(section.fixed, name), value or {}, section.provided)
    elif is_class(value) or (isinstance(value, dict) and default):
        yield from _object(config, name, {"class_path": default, **value}, getattr(section, "provided", ()))
    elif isinstance(section, ScalarSection):
        current = inline(value) if name in config.values else "required" if section.required else ""
        yield Option(name, type_text(section.type), current, section.description)
    else:
        yield Option(f"{name}.class_path", "class", default or "required", section.description)


def _object(
    config: ComposedConfig, key: str, value: dict[str, Any], provided: Collection[str] = ()
) -> Iterator[Option]:
    """Yield the rows of one object: its class, then the options of that class."""
    cls = find_class(value["class_path"], f"{config.origin(f'{key}.class_path')}: {key}.class_path")
    yield Option(f"{key}.class_path", "class", value["class_path"], (inspect.getdoc(cls) or "").partition("\n\n")[0])
    yield from _options(config, key, cls, value.get("init_args") or {}, provided)


def _options(
    config: ComposedConfig, key: str, cls: Any, values: dict[str, Any], provided: Collection[str] = ()
) -> Iterator[Option]:
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
