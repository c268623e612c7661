"""The plan of a job and the checks before its submission, as pure functions of plain values."""

import math
import re
import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import yaml

from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.cluster.slurm_api import parse_spans
from aim_lightning.utils.errors import UserError

MOST_TASKS = 10_000  # of an array

DIRECTIVES = yaml.safe_load(Path(__file__).with_name("directives.yaml").read_text(encoding="utf-8"))
MARGIN = 1.5  # factor on measured seconds: shared file systems vary


@dataclass(frozen=True)
class Task:
    """One run of a job: its index in an array (None without one) and its name."""

    index: int | None
    run: str

    @property
    def file(self) -> str:
        """Return the name of the file in the job's directory with the composed configuration."""
        return "job.yaml" if self.index is None else f"job-{self.index}.yaml"


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
        working_directory: the checkout.
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
    working_directory: Path = field(default_factory=Path.cwd)
    python: str = sys.executable
    parallel: int | None = None
    timings: dict[str, float] = field(default_factory=dict)
    fit_options: list[str] = field(default_factory=list)

    @property
    def cpus_per_rank(self) -> int:
        """Return the CPUs per rank."""
        return self.options.cpus_per_task or self.workers + 2

    @property
    def ranks_per_task(self) -> int:
        """Return the ranks per task of srun: torchrun is one task per node."""
        return self.devices if self.options.launcher == "torchrun" else 1

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
        for names, source in DIRECTIVES.items():
            if name in names.split():
                raise UserError(f"cluster.directives: {line!r} is set by {source}; set it there")
    if plan.cpus_per_rank < plan.workers + 1:
        need = f"a rank and its {plan.workers} loader processes (data.num_workers) need {plan.workers + 1}"
        raise UserError(f"cluster.cpus_per_task is {plan.cpus_per_rank}; {need}")
    if options.signal_lead >= (limit := seconds(options.time)):
        rest = f"leaves nothing of cluster.time {options.time} ({limit} s)"
        raise UserError(f"cluster.signal_lead {options.signal_lead} s {rest}; set a smaller one")
    return [_check_lead(plan)]


def _check_lead(plan: JobPlan) -> str:
    """Check that the signal lead covers the longest pause between two steps, and a checkpoint."""
    lead, timings = plan.options.signal_lead, plan.timings
    if not {"longest_pause_seconds", "checkpoint_seconds"} <= timings.keys():
        fact = "not measured yet for this run: seconds to a batch boundary and for a checkpoint"
        return f"{fact}; cluster.signal_lead {lead} s is not checked"
    pause, save = timings["longest_pause_seconds"], timings["checkpoint_seconds"]
    # Several ranks agree on a signal one step after the first of them has received it.
    step = timings.get("step_seconds", 0.0) if plan.nodes * plan.devices > 1 else 0.0
    if lead < (window := requeue_window(save, pause, step)):
        needs = f"up to {pause:.1f} s between two batches (validation and sampling included), "
        needs += f"{step:.1f} s for a step until all ranks agree, " if step else ""
        needs += f"{save:.1f} s for a checkpoint; set at least {math.ceil(window)}"
        raise UserError(f"cluster.signal_lead is {lead} s; measured in this run: {needs}")
    return f"signal lead {lead} s; {window / MARGIN:.1f} s were needed at most so far"


def requeue_window(checkpoint_seconds: float, pause_seconds: float, step_seconds: float = 0.0) -> float:
    """Return the seconds before the time limit at which SLURM must send its warning.

    Args:
        checkpoint_seconds: duration of a save.
        pause_seconds: longest pause between two batches.
        step_seconds: duration of a step; with several ranks the stop takes effect one step later.
    """
    return MARGIN * (checkpoint_seconds + pause_seconds + step_seconds)


def seconds(text: str) -> int:
    """Return the seconds of a time limit in SLURM's formats: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.

    Raises:
        UserError: another format.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise UserError(f"cluster.time is {text!r}; write minutes, HH:MM:SS or D-HH:MM:SS")
    days, *parts = (part and int(part) for part in match.groups())
    if days is None and parts[2] is None:  # without days, one or two numbers start with minutes
        parts = [0, *parts]
    hours, minutes, rest = (part or 0 for part in parts[:3])
    return (((days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def array_indices(text: str) -> list[int]:
    """Return the numbers of a list such as "0-3,7".

    Raises:
        UserError: another format, or a repeated number.
    """
    spans = parse_spans(text) or []
    # Counted before it is built: a mistyped range would fill the memory.
    indices = list(chain(*spans)) if sum(map(len, spans)) <= MOST_TASKS else []
    if not indices or len(set(indices)) < len(indices):
        raise UserError(f"--seeds is {text!r}; write up to {MOST_TASKS:,} different numbers and ranges, such as 0-3,7")
    return indices
