"""Records of a run's jobs: those submitted (jobs.json), their starts (restarts.json), their end (outcome.json)."""

import time
from pathlib import Path

from aim_lightning.cluster.slurm_api import Job
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, tolerate_disk_errors, write_json

JOBS = "jobs.json"
RESTARTS = "restarts.json"
OUTCOME = "outcome.json"
RECORDS = 8  # jobs whose starts are kept: a second job of a run must not reset the count of the first one


def jobs(run_dir: Path) -> list[str]:
    """Return the numbers of submitted jobs, oldest first."""
    return [entry["job"] for entry in _read(run_dir)]


def add(run_dir: Path, job_id: str) -> None:
    """Record a submitted job."""
    write_json(run_dir / JOBS, [*_read(run_dir), _entry(job_id)])


def mark_cancelled(run_dir: Path, job_id: str) -> None:
    """Record that the user cancelled a job, or one task (ARRAY_TASK) of an array."""
    others = [entry for entry in _read(run_dir) if entry["job"] != job_id]
    entry = next((entry for entry in _read(run_dir) if entry["job"] == job_id), _entry(job_id))
    write_json(run_dir / JOBS, [*others, {**entry, "cancelled": True}])


def is_cancelled(experiment_dir: Path, job_id: str) -> bool:
    """Return True if any run of the experiment records the job, or its array, as cancelled."""
    names = (job_id, job_id.split("_")[0])
    entries = [entry for path in experiment_dir.glob(f"*/{JOBS}") for entry in _read(path.parent)]
    return any(entry["job"] in names and entry["cancelled"] for entry in entries)


def count_starts(previous: dict, job_id: str, step: int, restart: int = 0) -> dict:
    """Return the record of a start: the number of consecutive starts of this job at the same step.

    Args:
        previous: record of the last start that was written, {} without one.
        job_id: SLURM's number.
        step: of the newest checkpoint, 0 without one.
        restart: SLURM's number of restarts of the job. Starts that are missing in the record count too.
    """
    same_job = previous.get("job") == job_id
    starts = max(restart - (previous.get("restart", restart - 1) if same_job else -1), 1)
    if same_job and previous.get("step") == step:
        starts += previous.get("starts", 0)
    return {"job": job_id, "step": step, "starts": starts, "restart": restart}


def register_start(run_dir: Path, job: Job, step: int, limit: int) -> dict:
    """Count a start on disk; on a full disk, SLURM's own count limits the starts.

    Args:
        run_dir: directory of restarts.json.
        job: the job that starts.
        step: of the newest checkpoint, 0 without one.
        limit: consecutive starts without a new checkpoint.

    Raises:
        UserError: more starts than the limit.
    """
    path = Path(run_dir) / RESTARTS
    records = read_json(path, "restart record") if path.exists() else {}
    record = count_starts(records.pop(job.id, {}), job.id, step, job.starts)
    with tolerate_disk_errors(path):
        write_json(path, dict([*records.items(), (job.id, record)][-RECORDS:]))
    if record["starts"] > limit:
        raise UserError(
            f"job {job.id} has started {limit} times at step {step} without reaching a new checkpoint "
            f"(cluster.max_starts_without_progress {limit}); find the cause in the log above, then submit again"
        )
    return record


def record_exit(run_dir: Path, job: Job, code: int) -> None:
    """Record the exit code of `fit` for job.sbatch, since torchrun turns every failure into exit code 1."""
    path = Path(run_dir) / OUTCOME
    with tolerate_disk_errors(path):
        write_json(path, {"job": job.id, "starts": job.starts, "code": code})


def recorded_exit(run_dir: Path, job: Job) -> int | None:
    """Return the exit code that this start of the job recorded; None without one."""
    path = Path(run_dir) / OUTCOME
    content = read_json(path, "outcome") if path.exists() else {}
    return content["code"] if (content.get("job"), content.get("starts")) == (job.id, job.starts) else None


def _entry(job_id: str) -> dict:
    return {"job": job_id, "submitted": round(time.time()), "cancelled": False}


def _read(run_dir: Path) -> list[dict]:
    path = Path(run_dir) / JOBS
    return read_json(path, "list of jobs") if path.exists() else []
