"""python -m torture --faults 200: kills a training 200 times and says what that changed. `make torture N=200`."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
FAILURES = (
    "rows lost",
    "rows doubled",
    "records unlike the plan",
    "rows twice in the plan",
    "final states that differ",
    "curves that differ",
    "surprises",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=20, help="over all numbers of ranks (default: 20)")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2], help="processes of each scenario (default: 1 2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    parser.add_argument("--report", type=Path, help="also write the report to this JSON file")
    parser.add_argument("--keep", type=Path, help="directory for runs and logs, kept (default: a temporary one)")
    options = parser.parse_args()

    import torch
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    import aim_lightning.cli.fit_lifecycle  # noqa: F401 (everything slow, once, so that its forks have it)
    from torture.scenario import Scenario

    torch.set_num_threads(1)
    shares = [options.faults // len(options.ranks)] * len(options.ranks)
    shares[0] += options.faults - sum(shares)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        reports = []
        for ranks, faults in zip(options.ranks, shares, strict=True):
            place = root / f"ranks{ranks}"
            place.mkdir(parents=True)
            report = lambda line, ranks=ranks: print(f"[{ranks} rank(s)] {line}", flush=True)  # noqa: E731
            reports.append(Scenario(place, ranks, faults, options.seed, report).run())
            print(json.dumps(reports[-1], indent=1), flush=True)
    if options.report:
        options.report.write_text(json.dumps(reports, indent=1))
    survived = sum(report["faults"] for report in reports)
    failed = [report for report in reports if not passed(report)]
    lost, doubled = (sum(report.get(name, 0) for report in reports) for name in ("rows lost", "rows doubled"))
    verdict = "FAILED" if failed else "all runs equal to the undisturbed ones to the bit"
    print(f"{survived} faults, {lost} rows lost, {doubled} rows doubled: {verdict}")
    return 1 if failed else 0


def passed(report: dict) -> bool:
    """Whether a scenario left no trace."""
    return "final state" not in report and not any(report[name] for name in FAILURES)


if __name__ == "__main__":
    sys.exit(main())
