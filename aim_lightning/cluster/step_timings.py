"""Seconds that a run needed, kept beside it: the check before the next submission reads them."""

import time
from collections.abc import Iterable
from pathlib import Path

from aim_lightning.utils.files import read_json, tolerate_disk_errors, write_json

FILE = "timings.json"


def read(run_dir: Path | str) -> dict[str, float]:
    """What is known; {} before the first job."""
    path = Path(run_dir) / FILE
    return read_json(path, "timings") if path.exists() else {}


def longest(run_dirs: Iterable[Path]) -> dict[str, float]:
    """The largest of every value over several runs, such as the tasks of an array."""
    found: dict[str, float] = {}
    for known in map(read, run_dirs):
        found |= {name: max(value, found.get(name, value)) for name, value in known.items()}
    return found


def record(run_dir: Path | str, **values: float) -> dict[str, float]:
    """Add values; names that end in `longest_…` or `checkpoint_seconds` keep their largest one."""
    known = read(run_dir)
    for name, value in values.items():
        keeps_largest = name in ("longest_pause_seconds", "checkpoint_seconds")
        known[name] = round(max(value, known.get(name, 0)) if keeps_largest else value, 3)
    with tolerate_disk_errors(Path(run_dir) / FILE):
        write_json(Path(run_dir) / FILE, known)
    return known


def since_stop(known: dict[str, float], now: float | None = None) -> float | None:
    """Seconds since the run was stopped for requeueing, None when it was not."""
    stopped = known.get("stopped_at")
    return None if not stopped else (now or time.time()) - stopped
