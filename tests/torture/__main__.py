"""python -m torture --faults 200: disturb a training 200 times and compare it with an undisturbed one."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
FAILURES = ("rows lost", "rows doubled", "records unlike the plan", "rows twice in the plan", "final state")
FAILURES += ("final states that differ", "curves that differ", "surprises")


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--faults", type=int, default=20, help="over all numbers of ranks (default: 20)")
    ranks = "processes of each scenario (default: 1 2)"
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help=ranks)
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument("--report", type=Path, help="also write the report to this JSON file")
    parser.add_argument("--keep", type=Path, help="directory for runs and logs, kept (default: a temporary one)")
    options = parser.parse_args()

    import torch
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    import aim_lightning.cli.fit_lifecycle  # noqa: F401 (imported before the forks, since it is slow)
    from torture.scenario import Scenario

    torch.set_num_threads(1)
    shares = [options.faults // len(options.ranks)] * len(options.ranks)
    shares[0] += options.faults - sum(shares)
    reports = []
    with tempfile.TemporaryDirectory() as temporary:
        for ranks, faults in zip(options.ranks, shares, strict=True):
            root = (options.keep or Path(temporary)) / f"ranks{ranks}"
            root.mkdir(parents=True)
            reports.append(Scenario(root, ranks, faults, options.seed).run())
            print(json.dumps(reports[-1], indent=1), flush=True)
    if options.report:
        options.report.write_text(json.dumps(reports, indent=1))
    failed = any(report.get(name) for report in reports for name in FAILURES)
    faults, lost, doubled = (sum(report.get(name, 0) for report in reports) for name in ("faults", *FAILURES[:2]))
    verdict = "FAILED" if failed else "all runs equal to the undisturbed ones to the bit"
    print(f"{faults} faults, {lost} rows lost, {doubled} rows doubled: {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
