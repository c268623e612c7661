"""`aim-lightning config`: print what a configuration comes to."""

import argparse

from aim_lightning.config import Document
from aim_lightning.config.yaml_text import dump


def run(document: Document, options: argparse.Namespace) -> int:
    """Prints the composed and resolved document as YAML."""
    print(dump(document.values), end="")
    return 0
