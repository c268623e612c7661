"""Seconds measured in a run (timings.json); the check before the next submission reads them."""

import time
from collections.abc import Iterable
from pathlib import Path

from aim_lightning.utils.files import read_json, tolerate_disk_errors, write_json

FILE = "timings.json"
LARGEST = ("longest_pause_seconds", "checkpoint_seconds")  # of all jobs of the run; others are of the latest job


def read(run_dir: Path | str) -> dict[str, float]:
    """Return the timings of a run; {} before its first job."""
    path = Path(run_dir) / FILE
    return read_json(path, "timings") if path.exists() else {}


def longest(run_dirs: Iterable[Path]) -> dict[str, float]:
    """Return the largest value of each timing over several runs, such as the tasks of an array."""
    result: dict[str, float] = {}
    for timings in map(read, run_dirs):
        result |= {name: max(value, result.get(name, value)) for name, value in timings.items()}
    return result


def record(run_dir: Path | str, **values: float) -> dict[str, float]:
    """Write timings and return all of them.

    Args:
        run_dir: directory of timings.json.
        values: seconds by name; the names in LARGEST keep their largest value.
    """
    timings = read(run_dir)
    for name, value in values.items():
        timings[name] = round(max(value, timings.get(name, 0)) if name in LARGEST else value, 3)
    with tolerate_disk_errors(Path(run_dir) / FILE):
        write_json(Path(run_dir) / FILE, timings)
    return timings


def since_stop(timings: dict[str, float], now: float | None = None) -> float | None:
    """Return the seconds since the run was stopped for requeueing; None without such a stop."""
    stopped = timings.get("stopped_at")
    return None if not stopped else (now or time.time()) - stopped
