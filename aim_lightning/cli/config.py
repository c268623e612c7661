"""The configuration of one command, composed and checked, with typed access to its sections."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.value_ranges import check_ranges
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.config.check import Section, check
from aim_lightning.config.compose import ComposedConfig, compose, walk
from aim_lightning.config.yaml import read_mapping
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError

if TYPE_CHECKING:
    from aim_lightning.sampling import SamplingOptions

DEFAULTS = Path(__file__).with_name("defaults.yaml")
_TYPES = {"str": str, "int": int, "str or null": str | None}
SECTIONS = {
    name: Section(**entry | {"type": _TYPES.get(entry.get("type"))})
    for name, entry in read_mapping(Path(__file__).with_name("sections.yaml"), "sections.yaml").items()
}
# Their values stay the text that was typed: a run may be called 001.
TEXTS = {name for name, section in SECTIONS.items() if section.type and section.type is not int}


class Config(ComposedConfig):
    """Composed configuration with typed sections; `values` holds the plain mappings."""

    @property
    def run_directory(self) -> RunDirectory:
        """Return the run directory.

        Raises:
            UserError: `experiment` or `run` is not a plain directory name.
        """
        values = self.values
        return RunDirectory(str(values["experiment"]), str(values["run"]), Path(values["runs_root"]))

    @property
    def trainer(self) -> dict[str, Any]:
        """Return the options of the Trainer that the configuration sets."""
        return self.values["trainer"]

    @property
    def cluster(self) -> ClusterOptions:
        """Return the section `cluster`."""
        return ClusterOptions(**self.values["cluster"])

    @property
    def sampling(self) -> "SamplingOptions":
        """Return the section `sampling`."""
        from aim_lightning.sampling import SamplingOptions  # imports torch

        return SamplingOptions(**self.values["sampling"])

    def blame(self, message: str) -> str:
        """Start an error of a constructor with the file that set the value, and the key.

        Args:
            message: e.g. "VQConfig.norm_groups is 7; …", by a class that does not know its key.

        Returns:
            e.g. "x.yaml: model.network.norm_groups is 7; …", or the same message if no single key fits.
        """
        # Errors of constructors start with "section: argument " or "name.argument ".
        match = re.match(r"(?:(\w+): )?([\w.]+)(?= )", message)
        if match is None:
            return message
        named, fact = ".".join(filter(None, match.groups())), message[match.end() :]
        values = {key.replace(".init_args", ""): value for key, value in walk("", self.values)}
        origins = {key.replace(".init_args", ""): origin for key, origin in self.origins.items()}
        keys = [key for key in origins if "." in named and f".{key}".endswith(f".{named}")]
        if not keys:  # the class has another name than its key
            last = f".{named.rpartition('.')[2]}"
            keys = [key for key in origins if key.endswith(last) and fact.startswith(f" is {values.get(key)!r};")]
        return f"{origins[keys[0]]}: {keys[0]}{fact}" if len(keys) == 1 else message

    def init_args(self, section: str) -> dict[str, Any]:
        """Return the arguments of a section's class; empty where the section is missing or null."""
        return (self.values.get(section) or {}).get("init_args") or {}

    def class_name(self, section: str) -> str:
        """Return the name of a section's class without its module; empty where the section is missing or null."""
        return (self.values.get(section) or {}).get("class_path", "").rpartition(".")[2]

    @property
    def is_tokenizer(self) -> bool:
        """Return True if the configuration trains a tokenizer."""
        return self.class_name("model") == "TokenizerModule"


def read(arguments: Arguments) -> Config:
    """Compose the defaults, the files and the overrides of a command line."""
    return Config(**vars(compose([DEFAULTS, *arguments.configs], arguments.overrides, texts=TEXTS)))


def read_and_check(arguments: Arguments, optional: Collection[str] = (), classes: bool = True) -> Config:
    """Compose a configuration, then compare it with the sections and the signatures of its classes.

    Args:
        arguments: files and overrides.
        optional: required sections that may be missing.
        classes: False to check scalar sections only, without importing torch.

    Raises:
        UserError: a value is missing, unknown, of the wrong type or out of range.
    """
    config = read(arguments)
    check(config, SECTIONS, optional, classes)
    check_ranges(config, SECTIONS)
    return config


def tokenizer_source(text: str) -> str | dict[str, Any]:
    """Return a source of weights unchanged; of a YAML file, return its key `tokenizer`.

    Args:
        text: value of the option --tokenizer.

    Raises:
        UserError: the file has no such key, or its class does not exist.
    """
    return read_section(text, "tokenizer", "--tokenizer") if Path(text).suffix in (".yaml", ".yml") else text


def read_section(path: str | Path, name: str, option: str) -> Any:
    """Return one checked section of a YAML file.

    Args:
        path: of the file.
        name: of the section.
        option: that names the file, for errors.

    Raises:
        UserError: the file does not set the section, or its class does not exist.
    """
    config = read(Arguments([Path(path)]))
    if (section := config.values[name]) is None:
        raise UserError(f"{option}: {path} does not set the key {name}")
    check(Config({name: section}, config.origins), {name: SECTIONS[name]})
    return section
