"""Which process this is, before any process group exists, and printing from one of them."""

import os

RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def global_rank() -> int:
    """Rank from the launcher's environment (torchrun, srun, Lightning's own subprocesses); 0 alone."""
    for name in RANK_VARIABLES:
        if name in os.environ:
            return int(os.environ[name])
    return 0


def say(text: str) -> None:
    """Print once, from rank zero."""
    if global_rank() == 0:
        print(text, flush=True)
