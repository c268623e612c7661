"""The section `cluster`: how a run is submitted to a SLURM cluster."""

from dataclasses import dataclass, field
from typing import Literal

from aim_lightning.utils.ranges import Range, check_arguments


@dataclass(frozen=True)
class ClusterOptions:
    """Resources of a SLURM job, and its behaviour at interruptions.

    Args:
        partition: SLURM partition; null = the cluster's default.
        account: SLURM account that is charged.
        qos: quality of service.
        constraint: features that nodes must have.
        time: time limit of one job, as SLURM writes it (D-HH:MM:SS); a run may take many jobs.
        cpus_per_task: CPUs per rank; null = data.num_workers + 2.
        memory: per node, such as 200G; null = the cluster's default.
        gpu_request: option that requests GPUs; {gpus} is their number per node. Every rank must see all of its node's.
        directives: further #SBATCH options.
        modules: names for `module load`.
        setup: shell lines that run before training.
        environment: variables to set.
        container: command in front of python, such as `apptainer exec --nv aim.sif`.
        python: the interpreter in the job; null = the one that submits the job.
        srun: further options of srun.
        launcher: ``srun`` starts every rank; ``torchrun`` is started by srun once per node.
        signal_lead: seconds before the time limit at which SLURM sends SIGUSR1.
        requeue_on_crash: requeue the job also after a crash, a hang or a lost rank.
        max_starts_without_progress: consecutive starts without a new checkpoint before a job aborts.
        hang_seconds: seconds without progress after which a rank prints its stacks and ends the job; null = never.
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
        # SLURM keeps the seconds of --signal in 16 bits.
        check_arguments("cluster.", type(self), vars(self), Range(1), signal_lead=Range(1, 65535))
