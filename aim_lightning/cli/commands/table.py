"""`aim-lightning table`: our rows next to the paper's."""

import argparse
from pathlib import Path

from aim_lightning.utils.files import write_text

HELP = "render experiments/README.md: our rows next to the paper's"
NEEDS_CONFIG = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--results", metavar="DIR", default="experiments/results", help="directory of records")
    parser.add_argument("--sweeps", metavar="DIR", default="experiments/sweeps", help="directory of recorded sweeps")
    parser.add_argument("--out", metavar="FILE", default="experiments/README.md", help="file for the table")


def run(config: None, options: argparse.Namespace) -> int:
    """Write the Markdown file."""
    from aim_lightning.evaluation.report.sweep import read_sweeps
    from aim_lightning.evaluation.report.table import read_records, render

    records, sweeps = read_records(options.results), read_sweeps(options.sweeps)
    write_text(Path(options.out), render(records, sweeps))
    print(f"{options.out}: {len(records)} records of {options.results}, {len(sweeps)} sweeps of {options.sweeps}")
    return 0
