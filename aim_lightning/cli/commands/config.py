"""`aim-lightning config`: print what a configuration comes to."""

import argparse
from pathlib import Path

from aim_lightning.cli.config import Config
from aim_lightning.config.yaml import dump
from aim_lightning.runs.directory import RunDirectory

HELP = "print the composed configuration"


def run_directory(document: Config) -> RunDirectory:
    """Where this run's files go."""
    values = document.values
    return RunDirectory(str(values["experiment"]), str(values["run"]), Path(values["runs_root"]))


def backend_of(document: Config) -> str:
    """The backend that `model` asks for; auto where it asks for none."""
    model = document.values.get("model") or {}
    return (model.get("init_args") or {}).get("backend", "auto")


def run(document: Config, options: argparse.Namespace) -> int:
    """Prints the composed and resolved document as YAML."""
    print(dump(document.values), end="")
    return 0
