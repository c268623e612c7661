"""The section `cluster`: how a run is put on a SLURM cluster."""

from dataclasses import dataclass, field
from typing import Literal

from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class ClusterOptions:
    """What job.sbatch asks for, and what happens when a job is interrupted.

    Args:
        partition: where to queue; null = the cluster's default.
        account: who pays.
        qos: quality of service.
        constraint: features that nodes must have.
        time: time limit of one job, as SLURM writes it (D-HH:MM:SS); a run may take many jobs.
        cpus_per_task: processors a rank; null = data.num_workers + 2.
        memory: a node, such as 200G; null = the cluster's default.
        gpu_request: how GPUs are asked for; {gpus} is their number a node. Every rank must see all of its node's.
        directives: further #SBATCH options.
        modules: for `module load`.
        setup: shell lines before training starts.
        environment: variables to set.
        container: command in front of python, such as `apptainer exec --nv aim.sif`.
        python: the interpreter in the job; null = the one that submits.
        srun: further options of srun.
        launcher: srun starts every rank, or srun starts one torchrun a node.
        signal_lead: seconds before the time limit at which SLURM warns (SIGUSR1).
        requeue_on_crash: bring the job back also after a crash, a hang or a lost rank.
        max_starts_without_progress: starts in a row without a new checkpoint before a job gives up.
        hang_seconds: a rank without progress for so long writes its stacks and ends the job; null = never.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = "01:00:00"
    cpus_per_task: int | None = None
    memory: str | None = None
    gpu_request: str = "--gpus-per-node={gpus}"
    directives: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    container: str | None = None
    python: str | None = None
    srun: list[str] = field(default_factory=list)
    launcher: Literal["srun", "torchrun"] = "srun"
    signal_lead: int = 120
    requeue_on_crash: bool = True
    max_starts_without_progress: int = 3
    hang_seconds: int | None = 1800

    def __post_init__(self) -> None:
        if self.signal_lead < 1 or self.signal_lead > 65535:  # SLURM keeps it in 16 bits
            raise UserError(f"cluster.signal_lead is {self.signal_lead} s; it must be 1 to 65535")
        for name in ("cpus_per_task", "max_starts_without_progress", "hang_seconds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"cluster.{name} is {value}; it must be at least 1")
