"""The job that this process runs in, and what SLURM says about jobs."""

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aim_lightning.cluster import signals
from aim_lightning.utils.process import in_step

TASKS = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+))?")
PAIR = re.compile(r"(?:^|\s)([A-Za-z][\w/:]*)=(\S*)")


@dataclass(frozen=True)
class Job:
    """A SLURM job seen from inside.

    Args:
        id: what scontrol understands; for a task of an array ARRAY_TASK: the plain number of an array's last task
            is that of the whole array.
        starts: how often SLURM has restarted it, 0 the first time.
        node: this node's name.
        tasks: processes that srun started; None outside a step and in a shell that srun gave.
        nodes: nodes of the step; None outside a step.
    """

    id: str
    starts: int
    node: str
    tasks: int | None = None
    nodes: int | None = None

    @classmethod
    def current(cls, env: Mapping[str, str] = os.environ) -> "Job | None":
        """The job of this process, or None."""
        if "SLURM_JOB_ID" not in env:
            return None
        array = env.get("SLURM_ARRAY_JOB_ID")
        name = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        step = in_step(env)
        return cls(
            name,
            int(env.get("SLURM_RESTART_COUNT") or 0),
            env.get("SLURMD_NODENAME", "?"),
            int(env["SLURM_STEP_NUM_TASKS"]) if step else None,
            int(env.get("SLURM_STEP_NUM_NODES") or 1) if step else None,
        )


@dataclass(frozen=True)
class SlurmJobInfo:
    """What `scontrol show job` says of one job."""

    id: str
    state: str
    reason: str = "None"
    restarts: int = 0
    preempted: bool = False
    may_requeue: bool = True
    nodes: str = ""
    run_time: str = ""
    time_limit: str = ""
    start_time: str = ""

    @property
    def waiting_or_running(self) -> bool:
        """Whether it is still SLURM's business."""
        return self.state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED")

    def holds(self, task: int) -> bool:
        """Whether this is that task of an array, or those that wait, such as 9_0-3,7%2, have it among them."""
        text = self.id.partition("_")[2].partition("%")[0]
        parts = [TASKS.fullmatch(part) for part in text.split(",")]
        if not all(parts):
            return bool(text)  # SLURM cuts long lists short
        spans = [(int(part[1]), int(part[2] or part[1]), int(part[3] or 1)) for part in parts]
        return any(task in range(first, last + 1, step) for first, last, step in spans)


def parse_jobs(text: str) -> list[SlurmJobInfo]:
    """Every job in the output of `scontrol show job`."""
    return [_facts(dict(PAIR.findall(record))) for record in re.split(r"\n\s*\n", text) if "JobId=" in record]


def _facts(pairs: dict[str, str]) -> SlurmJobInfo:
    array = pairs.get("ArrayJobId")
    return SlurmJobInfo(
        id=f"{array}_{pairs.get('ArrayTaskId', '?')}" if array else pairs["JobId"],
        state=pairs.get("JobState", "?"),
        reason=pairs.get("Reason", "None"),
        restarts=int(pairs.get("Restarts") or 0),
        preempted=pairs.get("PreemptTime", "None") not in ("None", "", "Unknown"),
        may_requeue=pairs.get("Requeue", "1") == "1",
        nodes=pairs.get("NodeList", "").replace("(null)", ""),
        run_time=pairs.get("RunTime", ""),
        time_limit=pairs.get("TimeLimit", ""),
        start_time=pairs.get("StartTime", ""),
    )


class SlurmError(Exception):
    """SLURM's own words about what it would not do; one line."""


class NoCommand(SlurmError):
    """SLURM's commands are missing here, as inside a container."""


def command(*words: str, timeout: float = 30) -> str:
    """Output of a SLURM command, which a signal to the whole job does not end.

    Raises:
        SlurmError: it is not there, does not answer, or says no.
    """
    try:
        with signals.held():
            done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise NoCommand(f"the command {words[0]} does not exist here") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} gave no answer within {timeout:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SlurmError(lines[-1] if lines else f"{words[0]} ended with exit code {done.returncode}")
    return done.stdout


def show(job_id: str, run: Callable[..., str] = command) -> list[SlurmJobInfo]:
    """SLURM's records of a job, one a task of an array; empty when it has forgotten the job.

    Raises:
        SlurmError: SLURM cannot be asked.
    """
    try:
        return parse_jobs(run("scontrol", "show", "job", job_id))
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise
