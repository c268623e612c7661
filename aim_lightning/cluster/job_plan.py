"""The plan of a job and the checks before its submission, as pure functions of plain values."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.utils.errors import UserError

# Directives that job.sbatch writes itself, and where they come from.
OWNED = {
    "nodes": "trainer.num_nodes",
    "N": "trainer.num_nodes",
    "ntasks": "trainer.devices and trainer.num_nodes",
    "n": "trainer.devices and trainer.num_nodes",
    "ntasks-per-node": "trainer.devices",
    "cpus-per-task": "cluster.cpus_per_task",
    "c": "cluster.cpus_per_task",
    "time": "cluster.time",
    "t": "cluster.time",
    "partition": "cluster.partition",
    "p": "cluster.partition",
    "account": "cluster.account",
    "A": "cluster.account",
    "qos": "cluster.qos",
    "constraint": "cluster.constraint",
    "C": "cluster.constraint",
    "mem": "cluster.memory",
    "signal": "cluster.signal_lead",
    "array": "--seeds or --sweep",
    "a": "--seeds or --sweep",
    "job-name": "EXP and RUN",
    "J": "EXP and RUN",
    "output": "the run directory",
    "o": "the run directory",
    "open-mode": "the requeueing",
    "requeue": "the requeueing",
    "no-requeue": "the requeueing",
}
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?$")
MARGIN = 1.5  # times the measured seconds: file systems are sometimes slow


@dataclass(frozen=True)
class Task:
    """One run of a job: its name and the file with its composed configuration."""

    index: int | None
    run: str
    config: Path


@dataclass(frozen=True)
class JobPlan:
    """All values that job.sbatch and its checks depend on.

    Args:
        name: EXP/RUN.
        directory: run directory, with job.sbatch, logs and frozen configurations.
        tasks: one, or one per task of an array.
        nodes: number of machines.
        devices: ranks per node.
        gpus: True if each rank uses a GPU.
        workers: loader processes per rank.
        options: the section `cluster`.
        where: working directory, the checkout.
        python: the interpreter.
        parallel: maximum number of concurrent tasks of the array; None = no limit.
        timings: seconds measured in earlier jobs of this run (`runs/…/timings.json`).
        fit_options: further options of `fit`.
    """

    name: str
    directory: Path
    tasks: list[Task]
    nodes: int
    devices: int
    gpus: bool
    workers: int
    options: ClusterOptions
    where: Path
    python: str
    parallel: int | None = None
    timings: dict[str, float] = field(default_factory=dict)
    fit_options: list[str] = field(default_factory=list)

    @property
    def cpus_per_task(self) -> int:
        """Return the CPUs per rank."""
        return self.options.cpus_per_task or self.workers + 2

    @property
    def is_array(self) -> bool:
        """Return True if the job is an array."""
        return self.tasks[0].index is not None


def check(plan: JobPlan) -> list[str]:
    """Check a plan and return notes for the user.

    Args:
        plan: of the job.

    Raises:
        UserError: the job could not work.
    """
    options = plan.options
    for line in options.directives:
        if not line.strip():
            raise UserError("cluster.directives contains an empty line; remove it")
        name = re.sub(r"^(#SBATCH\s+)?-{1,2}", "", line.strip()).partition("=")[0].partition(" ")[0]
        if name in OWNED:
            raise UserError(f"cluster.directives: {line!r} is set by {OWNED[name]}; set it there")
    if plan.cpus_per_task < plan.workers + 1:
        raise UserError(
            f"cluster.cpus_per_task is {plan.cpus_per_task}; a rank and its {plan.workers} loader processes "
            f"(data.num_workers) need {plan.workers + 1}"
        )
    limit = seconds(options.time)
    if options.signal_lead >= limit:
        raise UserError(
            f"cluster.signal_lead {options.signal_lead} s leaves nothing of cluster.time {options.time} ({limit} s)"
        )
    return _check_lead(plan)


def _check_lead(plan: JobPlan) -> list[str]:
    """Check that the signal lead covers the longest pause between two steps, and a checkpoint."""
    pause, save = plan.timings.get("longest_pause_seconds"), plan.timings.get("checkpoint_seconds")
    if pause is None or save is None:
        return [
            "not measured yet for this run: seconds to a batch boundary and for a checkpoint; "
            f"cluster.signal_lead {plan.options.signal_lead} s is not checked"
        ]
    # Several ranks agree on a signal one step after the first of them has received it.
    step = plan.timings.get("step_seconds", 0.0) if plan.nodes * plan.devices > 1 else 0.0
    seconds = pause + step + save
    if plan.options.signal_lead < MARGIN * seconds:
        more = f"{step:.1f} s for a step until all ranks agree, " if step else ""
        raise UserError(
            f"cluster.signal_lead is {plan.options.signal_lead} s; measured in this run: up to {pause:.1f} s between "
            f"two batches (validation and sampling included), {more}{save:.1f} s for a checkpoint; "
            f"set at least {math.ceil(MARGIN * seconds)}"
        )
    return [f"signal lead {plan.options.signal_lead} s; {seconds:.1f} s were needed at most so far"]


def seconds(text: str) -> int:
    """Return the seconds of a time limit in SLURM's formats: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.

    Raises:
        UserError: another format.
    """
    match = TIME.match(text.strip())
    if not match:
        raise UserError(f"cluster.time is {text!r}; write minutes, HH:MM:SS or D-HH:MM:SS")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, secs = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, secs = parts
    else:
        hours, minutes, secs = 0, parts[0], parts[1] if len(parts) == 2 else 0
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs


def array_indices(text: str) -> list[int]:
    """Return the numbers of a list such as "0-3,7".

    Raises:
        UserError: another format, or a repeated number.
    """
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise UserError(f"--seeds is {text!r}; write numbers and ranges, such as 0-3,7")
    indices = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        indices += range(int(first), int(last or first) + 1)
    if not indices or len(set(indices)) != len(indices):
        raise UserError(f"--seeds is {text!r}: numbers are repeated or missing")
    return indices
