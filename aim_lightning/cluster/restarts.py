"""A limit on starts that lead nowhere: a job that crashes again and again must not come back for ever."""

from pathlib import Path

from aim_lightning.cluster.slurm_api import Job
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, tolerate_disk_errors, write_json

FILE = "restarts.json"
JOBS = 8  # whose records are kept: a second job of a run must not make the first one forget


def count(before: dict, job_id: str, step: int, restart: int = 0) -> dict:
    """The record of this start: how many starts of this job in a row began at the same step.

    Args:
        before: record of the last start that could be written down, {} when there is none.
        step: of the newest checkpoint, 0 without one.
        restart: how often SLURM has restarted the job. Starts that are missing in the record count too.
    """
    mine = before.get("job") == job_id
    starts = max(restart - (before.get("restart", restart - 1) if mine else -1), 1)
    if mine and before.get("step") == step:
        starts += before.get("starts", 0)
    return {"job": job_id, "step": step, "starts": starts, "restart": restart}


def register(run_dir: Path, job: Job, step: int, limit: int) -> dict:
    """Count a start, on disk; where the disk does not take it, SLURM's own count bounds the starts.

    Raises:
        UserError: more than `limit` starts in a row without a new checkpoint.
    """
    path, job_id = Path(run_dir) / FILE, job.id
    known = read_json(path, "restart record") if path.exists() else {}
    records = {known["job"]: known} if "job" in known else known  # before, there was one for all jobs
    record = count(records.pop(job_id, {}), job_id, step, job.starts)
    with tolerate_disk_errors(path):
        write_json(path, dict([*records.items(), (job_id, record)][-JOBS:]))
    if record["starts"] > limit:
        raise UserError(
            f"job {job_id} has started {limit} times at step {step} without reaching a new checkpoint; it gives up "
            f"(cluster.max_starts_without_progress {limit}). Find the cause in the log above, then submit again"
        )
    return record
