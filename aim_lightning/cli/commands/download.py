"""`aim-lightning download`: published weights, feature networks and ADM's reference."""

import argparse
from pathlib import Path

NEEDS_CONFIG = False
HELP = "download published weights, feature networks or ADM's reference statistics"
# Listed here so that help needs no heavy import; each has an entry in weights.download.DOWNLOADS.
NAMES = ("AiM-B", "AiM-L", "AiM-XL", "VQ-16", "VQ-8", "inception", "vgg", "adm")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the name, and the directory that replaces the current one."""
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=f"one of {', '.join(NAMES)}")
    root = "directory in which weights/ and data/ are created (default: the current directory)"
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path(), help=root)


def run(config: None, options: argparse.Namespace) -> int:
    """Download and verify the files, and print their sizes and hashes."""
    from aim_lightning.weights.download import DOWNLOADS, download, files

    path = download(DOWNLOADS[options.name], options.root)
    for name, size, sha256 in files(path):
        print(f"{name}  {size:,} bytes  sha256 {sha256}")
    print(f"next: {DOWNLOADS[options.name].usage}")
    return 0
