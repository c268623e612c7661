"""Which process this is, before any process group exists, printing from one of them, and imports in less time."""

import contextlib
import gc
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Set by Lightning for its own subprocesses and nodes, and by srun; 0 or absent in the first process.
RANKS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
# Of every process that srun starts; the script that sbatch starts has the step's id alone at most.
STEP = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")
INTERACTIVE = ("bash", "sh", "zsh", "interactive")  # job names of `srun --pty bash`: a shell, not ranks


def is_rank_zero() -> bool:
    """Whether this is the first process of all, or the only one."""
    if os.environ.get("RANK"):  # torchrun's word is final: its nodes need not be in srun's order
        return int(os.environ["RANK"]) == 0
    return all(int(os.environ.get(name) or 0) == 0 for name in RANKS)


def rank() -> int:
    """Number of this process among all of them, as far as the environment tells."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or 0)


def node_name() -> str:
    """This machine as SLURM calls it, or its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@dataclass(frozen=True)
class ProcessRank:
    """Process `rank` of `world`; `local_rank` counts on its node."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def launched_rank() -> ProcessRank | None:
    """What torchrun (RANK, WORLD_SIZE) or srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS) says; None without a launcher.

    No launchers: sbatch, whose script is one process whatever SLURM_NTASKS says, and a shell that srun gave.
    """
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        return _place("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if in_step(os.environ):
        return _place("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    return None


def in_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of its ranks."""
    return all(name in env for name in STEP) and env.get("SLURM_JOB_NAME") not in INTERACTIVE


def _place(rank: str, world: str, local_rank: str) -> ProcessRank:
    return ProcessRank(
        *(int(os.environ.get(name) or default) for name, default in ((rank, 0), (world, 1), (local_rank, 0)))
    )


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """For imports: what they make stays, and looking for garbage in it took a third of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
