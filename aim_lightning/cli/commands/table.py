"""`aim-lightning table`: render the recorded results next to the paper's."""

import argparse
from pathlib import Path

from aim_lightning.cli.common_options import option
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_text

HELP = "render experiments/README.md: our rows next to the paper's"
NEEDS_CONFIG = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--results", **option("directory of records", "experiments/results", metavar="DIR"))
    parser.add_argument("--sweeps", **option("directory of recorded sweeps", "experiments/sweeps", metavar="DIR"))
    parser.add_argument("--suites", **option("directory of suites", "experiments/suites", metavar="DIR"))
    parser.add_argument("--out", **option("file for the table", "experiments/README.md", metavar="FILE"))


def run(config: None, options: argparse.Namespace) -> int:
    """Write the Markdown file."""
    from aim_lightning.evaluation.report.sweep import read_sweeps
    from aim_lightning.evaluation.report.table import read_records, read_suites, render

    if not Path(options.results).is_dir():
        raise UserError(f"{options.results} does not exist; run this in the root of a checkout, or set --results")
    records, sweeps = read_records(options.results), read_sweeps(options.sweeps)
    write_text(Path(options.out), render(records, sweeps, read_suites(options.suites)))
    print(f"{options.out}: {len(records)} records of {options.results}, {len(sweeps)} sweeps of {options.sweeps}")
    return 0
