"""SLURM's commands: the job of this process, and the records of jobs."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

from aim_lightning.cluster import signals
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import in_step

TIMEOUT = 30  # seconds for a command
SPAN = re.compile(r"(\d+)(?:-(\d+))?(?::([1-9]\d*))?")
# Field of `SlurmJobInfo` -> name in the output of scontrol.
FIELDS = {"state": "JobState", "reason": "Reason", "run_time": "RunTime", "time_limit": "TimeLimit"}
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
        array, starts = env.get("SLURM_ARRAY_JOB_ID"), int(env.get("SLURM_RESTART_COUNT") or 0)
        name = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
        job = cls(name, starts, env.get("SLURMD_NODENAME", "?"))
        if not in_step(env):
            return job
        return replace(job, tasks=int(env["SLURM_STEP_NUM_TASKS"]), nodes=int(env.get("SLURM_STEP_NUM_NODES") or 1))


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

    @property
    def waiting_or_running(self) -> bool:
        """Return True if the job has not ended."""
        return self.state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED")

    def holds(self, task: int) -> bool:
        """Return True if the record describes this task of an array, or waiting tasks that include it: 9_0-3,7%2."""
        text = self.id.partition("_")[2].partition("%")[0]
        spans = parse_spans(text)
        return bool(text) if spans is None else any(task in span for span in spans)  # SLURM truncates long lists


def parse_spans(text: str) -> list[range] | None:
    """Return the ranges of a list such as 0-3,7 or 0-6:3; None for another text."""
    spans = [SPAN.fullmatch(part) for part in text.split(",")]
    return [range(int(s[1]), int(s[2] or s[1]) + 1, int(s[3] or 1)) for s in spans] if all(spans) else None


def parse_jobs(text: str) -> list[SlurmJobInfo]:
    """Return every job in the output of `scontrol show job`."""
    records = [dict(PAIR.findall(record)) for record in re.split(r"\n\s*\n", text) if "JobId=" in record]
    return [
        SlurmJobInfo(
            id="{ArrayJobId}_{ArrayTaskId}".format_map(pairs) if "ArrayJobId" in pairs else pairs["JobId"],
            restarts=int(pairs.get("Restarts") or 0),
            preempted=pairs.get("PreemptTime", "None") not in ("None", "", "Unknown"),
            may_requeue=pairs.get("Requeue", "1") == "1",
            nodes=pairs.get("NodeList", "").replace("(null)", ""),
            **{field: pairs[name] for field, name in FIELDS.items() if name in pairs},
        )
        for pairs in records
    ]


class SlurmError(UserError):
    """Error of a SLURM command, with the last line of its output."""


class NoCommand(SlurmError):
    """Error of a SLURM command that does not exist, as inside a container."""


def command(*words: str) -> str:
    """Return the output of a SLURM command, which a signal to the whole job does not end.

    Args:
        words: the command line.

    Raises:
        SlurmError: the command is missing, fails or does not answer.
    """
    try:
        with signals.held():
            done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError:
        raise NoCommand(f"the command {words[0]} does not exist here") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} gave no answer within {TIMEOUT} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SlurmError(f"{words[0]}: {lines[-1] if lines else f'it ended with exit code {done.returncode}'}")
    return done.stdout


def show(job_id: str) -> list[SlurmJobInfo]:
    """Return SLURM's records of a job, one per task of an array; empty some minutes after its end.

    Args:
        job_id: SLURM's number.

    Raises:
        SlurmError: SLURM does not answer.
    """
    try:
        return parse_jobs(command("scontrol", "show", "job", job_id))
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise
