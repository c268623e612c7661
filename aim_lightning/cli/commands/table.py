"""`aim-lightning table`: our rows beside the paper's."""

import argparse
from pathlib import Path

from aim_lightning.evaluation.report.sweep import read_sweeps
from aim_lightning.evaluation.report.table import read_records, render
from aim_lightning.utils.files import write_text


def run(document: None, options: argparse.Namespace) -> int:
    """Writes the Markdown file."""
    records, sweeps = read_records(options.results), read_sweeps(options.sweeps)
    write_text(Path(options.out), render(records, sweeps))
    print(f"{options.out}: {len(records)} records of {options.results}, {len(sweeps)} sweeps of {options.sweeps}")
    return 0
