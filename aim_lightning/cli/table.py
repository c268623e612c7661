"""`aim-lightning table`: our rows beside the paper's."""

import argparse
from pathlib import Path

from aim_lightning.evaluation.table import read_records, render
from aim_lightning.utils.files import write_text


def run(document: None, options: argparse.Namespace) -> int:
    """Writes the Markdown file."""
    records = read_records(options.results)
    write_text(Path(options.out), render(records))
    print(f"{options.out}: {len(records)} records of {options.results}")
    return 0
