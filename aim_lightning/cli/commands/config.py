"""`aim-lightning config`: print the composed configuration."""

import argparse

from aim_lightning.cli.config import Config
from aim_lightning.config.yaml import dump

HELP = "print the composed configuration"


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the composed and resolved configuration as YAML."""
    print(dump(config.values), end="")
    return 0
