"""SLURM's commands: the job of this process, and the records of jobs."""

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
    """The SLURM job of this process.

    Args:
        id: argument of scontrol; ARRAY_TASK for a task of an array, because the plain number of an array's last
            task is that of the whole array.
        starts: SLURM's number of restarts, 0 the first time.
        node: this node's name.
        tasks: processes that srun started; None outside a step and in an interactive shell.
        nodes: nodes of the step; None outside a step.
    """

    id: str
    starts: int
    node: str
    tasks: int | None = None
    nodes: int | None = None

    @classmethod
    def current(cls, env: Mapping[str, str] = os.environ) -> "Job | None":
        """Return the job of this process; None outside SLURM."""
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
    """Record of one job in the output of `scontrol show job`."""

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
        """Return True if the job has not ended."""
        return self.state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED")

    def holds(self, task: int) -> bool:
        """Return True if the record is of this task of an array, or of waiting tasks that include it: 9_0-3,7%2."""
        text = self.id.partition("_")[2].partition("%")[0]
        parts = [TASKS.fullmatch(part) for part in text.split(",")]
        if not all(parts):
            return bool(text)  # SLURM truncates long lists
        spans = [(int(part[1]), int(part[2] or part[1]), int(part[3] or 1)) for part in parts]
        return any(task in range(first, last + 1, step) for first, last, step in spans)


def parse_jobs(text: str) -> list[SlurmJobInfo]:
    """Return every job in the output of `scontrol show job`."""
    return [_job_info(dict(PAIR.findall(record))) for record in re.split(r"\n\s*\n", text) if "JobId=" in record]


def _job_info(pairs: dict[str, str]) -> SlurmJobInfo:
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
    """A failed SLURM command, with the last line of its output."""


class NoCommand(SlurmError):
    """A SLURM command that does not exist, as inside a container."""


def command(*words: str, timeout: float = 30) -> str:
    """Return the output of a SLURM command, which a signal to the whole job does not end.

    Args:
        words: the command line.
        timeout: seconds.

    Raises:
        SlurmError: the command is missing, fails or does not answer.
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
    """Return SLURM's records of a job, one per task of an array; empty some minutes after its end.

    Args:
        job_id: SLURM's number.
        run: calls a SLURM command.

    Raises:
        SlurmError: SLURM does not answer.
    """
    try:
        return parse_jobs(run("scontrol", "show", "job", job_id))
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise
