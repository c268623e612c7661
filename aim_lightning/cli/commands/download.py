"""`aim-lightning download`: published weights, feature networks and ADM's reference."""

import argparse
import json
from importlib.resources import files
from pathlib import Path

from aim_lightning.utils.logging import log_next

NEEDS_CONFIG = False
HELP = "download published weights, feature networks or ADM's reference statistics"
# Read as a file: help needs no import of torch.
NAMES = tuple(json.loads((files("aim_lightning") / "weights/downloads.json").read_text(encoding="utf-8")))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the name, and the directory that replaces the current one."""
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=f"one of {', '.join(NAMES)}")
    root = "directory in which weights/ and data/ are created (default: the current directory)"
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path(), help=root)


def run(config: None, options: argparse.Namespace) -> int:
    """Download and verify the files, and print their sizes and hashes."""
    from aim_lightning.weights import download

    entry = download.DOWNLOADS[options.name]
    for name, size, sha256 in download.files(download.download(entry, options.root)):
        print(f"{name}  {size:,} bytes  sha256 {sha256}")
    log_next(entry.usage)
    return 0
