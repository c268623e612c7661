"""python -m torture --faults 200: disturb a training 200 times and compare it with an undisturbed one."""

import json
import os
import sys
import tempfile
from pathlib import Path

from jsonargparse import auto_cli

os.environ.setdefault("OMP_NUM_THREADS", "1")
FAILURES = ("rows lost", "rows doubled", "records unlike the plan", "rows twice in the plan", "final state")
FAILURES += ("final states that differ", "curves that differ", "surprises")


def main(
    faults: int = 20,
    ranks: tuple[int, ...] = (1, 2),
    seed: int = 0,
    report: Path | None = None,
    keep: Path | None = None,
) -> int:
    """Disturb trainings, compare them with undisturbed ones, and return 1 if one differs.

    Args:
        faults: number of faults over all scenarios.
        ranks: processes of each scenario, such as [1,2].
        seed: of the faults.
        report: also write the report to this JSON file.
        keep: directory for runs and logs, kept; None = a temporary one.
    """
    import torch
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    import aim_lightning.cli.fit_lifecycle  # noqa: F401 (imported before the forks, since it is slow)
    from torture.scenario import Scenario

    torch.set_num_threads(1)
    shares = [faults // len(ranks)] * len(ranks)
    shares[0] += faults - sum(shares)
    reports = []
    with tempfile.TemporaryDirectory() as temporary:
        for world, share in zip(ranks, shares, strict=True):
            root = (keep or Path(temporary)) / f"ranks{world}"
            root.mkdir(parents=True)
            reports.append(Scenario(root, world, share, seed).run())
            print(json.dumps(reports[-1], indent=1), flush=True)
    if report:
        report.write_text(json.dumps(reports, indent=1))
    failed = any(result.get(name) for result in reports for name in FAILURES)
    total, lost, doubled = (sum(result.get(name, 0) for result in reports) for name in ("faults", *FAILURES[:2]))
    verdict = "FAILED" if failed else "all runs equal to the undisturbed ones to the bit"
    print(f"{total} faults, {lost} rows lost, {doubled} rows doubled: {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(auto_cli(main, as_positional=False))
