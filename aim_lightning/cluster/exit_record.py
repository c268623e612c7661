"""How `fit` ended, written down for job.sbatch: torchrun makes every failure exit code 1."""

from pathlib import Path

from aim_lightning.cluster.slurm_api import Job
from aim_lightning.utils.files import read_json, tolerate_disk_errors, write_json

FILE = "outcome.json"


def write(run_dir: Path, job: Job, code: int) -> None:
    """The exit code of this incarnation of the job; where the disk does not take it, job.sbatch has srun's."""
    path = Path(run_dir) / FILE
    with tolerate_disk_errors(path):
        write_json(path, {"job": job.id, "starts": job.starts, "code": code})


def read(run_dir: Path, job: Job) -> int | None:
    """What this incarnation wrote; None when it ended without a word."""
    path = Path(run_dir) / FILE
    content = read_json(path, "outcome") if path.exists() else {}
    mine = (content.get("job"), content.get("starts")) == (job.id, job.starts)
    return content["code"] if mine else None
