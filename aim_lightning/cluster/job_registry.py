"""Which jobs a run has had, and which of them must not come back: runs/EXP/RUN/jobs.json."""

import time
from pathlib import Path

from aim_lightning.utils.files import read_json, write_json

FILE = "jobs.json"


def jobs(run_dir: Path) -> list[str]:
    """Numbers of submitted jobs, oldest first."""
    return [entry["job"] for entry in _read(run_dir)]


def add(run_dir: Path, job_id: str) -> None:
    """A job was submitted."""
    write_json(run_dir / FILE, [*_read(run_dir), _entry(job_id)])


def mark_cancelled(run_dir: Path, job_id: str) -> None:
    """The user has cancelled it, or this one task (ARRAY_TASK) of an array, which need not be known here."""
    others = [entry for entry in _read(run_dir) if entry["job"] != job_id]
    mine = next((entry for entry in _read(run_dir) if entry["job"] == job_id), _entry(job_id))
    write_json(run_dir / FILE, [*others, {**mine, "cancelled": True}])


def is_cancelled(experiment_dir: Path, job_id: str) -> bool:
    """Whether a job, or the array that it belongs to, was cancelled; looks at all runs of the experiment."""
    names = (job_id, job_id.split("_")[0])
    entries = [entry for path in experiment_dir.glob(f"*/{FILE}") for entry in _read(path.parent)]
    return any(entry["job"] in names and entry["cancelled"] for entry in entries)


def _entry(job_id: str) -> dict:
    return {"job": job_id, "submitted": round(time.time()), "cancelled": False}


def _read(run_dir: Path) -> list[dict]:
    path = Path(run_dir) / FILE
    return read_json(path, "list of jobs") if path.exists() else []
