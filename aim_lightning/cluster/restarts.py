"""A limit on starts that lead nowhere: a job that crashes again and again must not come back for ever."""

from pathlib import Path

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, write_json

FILE = "restarts.json"


def count(before: dict, job_id: str, step: int) -> dict:
    """The record of this start: how many starts of this job in a row began at the same step.

    Args:
        before: record of the start before, {} when there is none.
        step: of the newest checkpoint, 0 without one.
    """
    same = before.get("job") == job_id and before.get("step") == step
    return {"job": job_id, "step": step, "starts": before.get("starts", 0) + 1 if same else 1}


def register(run_dir: Path, job_id: str, step: int, limit: int) -> dict:
    """Count a start, on disk.

    Raises:
        UserError: more than `limit` starts in a row without a new checkpoint.
    """
    path = Path(run_dir) / FILE
    record = count(read_json(path, "restart record") if path.exists() else {}, job_id, step)
    write_json(path, record)
    if record["starts"] > limit:
        raise UserError(
            f"job {job_id} has started {limit} times at step {step} without reaching a new checkpoint; it gives up "
            f"(cluster.max_starts_without_progress {limit}). Find the cause in the log above, then submit again"
        )
    return record
