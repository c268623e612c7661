"""JSON records that jobs keep in a run directory: submissions, starts, exit codes and measured seconds."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aim_lightning.cluster.requeue import USER_ERROR
from aim_lightning.cluster.slurm_api import Job
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, tolerate_disk_errors, write_json

JOBS, RESTARTS, OUTCOME, TIMINGS = "jobs.json", "restarts.json", "outcome.json", "timings.json"
RECORDS = 8  # jobs whose starts are kept: a second job of a run must not reset the count of the first one
LARGEST = ("longest_pause_seconds", "checkpoint_seconds")  # of all jobs of the run; others are of the latest job


def jobs(run_dir: Path) -> dict[str, dict]:
    """Return the records of submitted jobs by number, oldest first."""
    return {entry["job"]: entry for entry in _read(run_dir, JOBS, [], _are_jobs)}


def _are_jobs(entries: Any) -> bool:
    records = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    return records and all(isinstance(entry.get("job"), str) and "cancelled" in entry for entry in entries)


def add(run_dir: Path, job_id: str, **fields: bool) -> None:
    """Record a submitted job, or change its record."""
    entries = jobs(run_dir)
    new = {"job": job_id, "submitted": round(time.time()), "cancelled": False}
    entries[job_id] = entries.get(job_id, new) | fields
    write_json(run_dir / JOBS, list(entries.values()))


def mark_cancelled(run_dir: Path, job_id: str) -> None:
    """Record that the user cancelled a job, or one task (ARRAY_TASK) of an array."""
    add(run_dir, job_id, cancelled=True)


def is_cancelled(experiment_dir: Path, job_id: str) -> bool:
    """Return True if any run of the experiment records the job, or its array, as cancelled."""
    entries = [entry for path in experiment_dir.glob(f"*/{JOBS}") for entry in jobs(path.parent).values()]
    return any(entry["cancelled"] for entry in entries if entry["job"] in (job_id, job_id.split("_")[0]))


def register_start(run_dir: Path, job: Job, step: int, limit: int) -> int:
    """Count a start on disk; on a full disk, SLURM's own count limits the starts.

    Args:
        run_dir: directory of restarts.json.
        job: the job that starts.
        step: of the newest checkpoint, 0 without one.
        limit: consecutive starts without a new checkpoint.

    Returns:
        The number of consecutive starts of this job at this step.

    Raises:
        UserError: more starts than the limit.
    """
    records = _read(run_dir, RESTARTS, {})
    previous = records.pop(job.id, {"restart": -1})
    starts = max(job.starts - previous["restart"], 1)  # a full disk may have kept starts out of the record
    if previous.get("step") == step:
        starts += previous["starts"]
    records[job.id] = {"step": step, "starts": starts, "restart": job.starts}
    _write(run_dir, RESTARTS, dict(list(records.items())[-RECORDS:]))
    if starts > limit:
        fact = f"job {job.id} has started {limit} times at step {step} without reaching a new checkpoint"
        option = f"cluster.max_starts_without_progress {limit}"
        raise UserError(f"{fact} ({option}); find the cause in the log above, then submit again")
    return starts


def record_exit(run_dir: Path, job: Job | None, code: int) -> None:
    """Record the exit code of `fit` for job.sbatch; without a SLURM job or a run directory, do nothing."""
    # torchrun turns every failure into exit code 1.
    if job is not None and run_dir.is_dir():
        _write(run_dir, OUTCOME, {"job": job.id, "starts": job.starts, "code": code})


def recorded_exit(run_dir: Path, job: Job) -> int | None:
    """Return the exit code that this start of the job recorded; None without one."""
    record = _read(run_dir, OUTCOME, {})
    return record["code"] if (record.get("job"), record.get("starts")) == (job.id, job.starts) else None


def was_refused(run_dir: Path, since: float) -> bool:
    """Return True if the last exit code is that of a user error, recorded after a time in seconds since 1970."""
    record = _read(run_dir, OUTCOME, {})
    return record.get("code") == USER_ERROR and (run_dir / OUTCOME).stat().st_mtime > since


def read_timings(*run_dirs: Path | str) -> dict[str, float]:
    """Return the largest value of each timing over several runs, such as the tasks of an array; {} before any job."""
    result: dict[str, float] = {}
    for run_dir in run_dirs:
        timings = _read(run_dir, TIMINGS, {})
        result |= {name: max(value, result.get(name, value)) for name, value in timings.items()}
    return result


def record_timings(run_dir: Path | str, **values: float) -> None:
    """Write seconds on which the check of the next submission depends.

    Args:
        run_dir: directory of timings.json.
        values: seconds by name; the names in LARGEST keep their largest value.
    """
    timings = read_timings(run_dir)
    for name, value in values.items():
        timings[name] = round(max(value, timings.get(name, 0)) if name in LARGEST else value, 3)
    _write(run_dir, TIMINGS, timings)


def _read(run_dir: Path | str, name: str, default: Any, is_valid: Callable[[Any], bool] | None = None) -> Any:
    path, has_type = Path(run_dir) / name, lambda content: isinstance(content, type(default))
    return read_json(path, "job record", is_valid or has_type) if path.exists() else default


def _write(run_dir: Path | str, name: str, content: Any) -> None:
    """Write a record without which a job can still train: a full disk is no error."""
    with tolerate_disk_errors(Path(run_dir) / name):
        write_json(Path(run_dir) / name, content)
