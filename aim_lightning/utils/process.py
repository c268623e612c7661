"""Which process this is, before any process group exists, and printing from one of them."""

import os

# Set by torchrun, by Lightning for its own subprocesses and nodes, and by srun; 0 or absent in the first process.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def is_rank_zero() -> bool:
    """Whether this is the first process of all, or the only one."""
    return all(int(os.environ.get(name) or 0) == 0 for name in RANKS)


def say(text: str) -> None:
    """Print once, from rank zero."""
    if is_rank_zero():
        print(text, flush=True)
