"""Check before the first batch that all ranks agree and can communicate."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.cluster.rank_consistency import RankInfo, configuration_hash, faults, late_views, versions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import TransientError, UserError, first_line
from aim_lightning.utils.process import node_name

SHARED_SECONDS = 10.0  # network file systems show new files late
MARK = ".preflight-"


class Preflight(Callback):
    """Compare the environments of several ranks in `setup`; the command line always adds it.

    Args:
        run_dir: must be the same directory on all nodes.
        configuration: the composed configuration.
        start: name of the checkpoint that this rank starts from.

    Raises:
        UserError: on rank 0, if anything differs, with one line per difference; the other ranks exit. On any rank, if
            the first all-reduce gives a wrong sum.
        TransientError: on each rank whose communication fails; on rank 0, if a shared directory shows an old state.
    """

    def __init__(self, run_dir: str, configuration: dict, start: str) -> None:
        self.run_dir = Path(run_dir)
        self.configuration = configuration
        self.start = start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        ranks = self._gather(trainer)
        if lines := faults(ranks, str(self.run_dir)):
            self._abort(trainer, lines, UserError, 2)
        if lines := late_views(ranks):
            self._abort(trainer, lines, TransientError, TransientError.exit_code)
        _reduce(trainer, len(ranks))

    def _gather(self, trainer: Trainer) -> list[RankInfo]:
        group, name = ProcessGroup(), None
        if trainer.is_global_zero:
            name = f"{MARK}{os.getpid()}-{time.time_ns()}"
            _touch(self.run_dir / name)
        with _network(trainer.global_rank, "the first broadcast"):
            mark = self.run_dir / group.broadcast(name)
        device = trainer.strategy.root_device
        info = RankInfo(
            node=node_name(),
            rank=trainer.global_rank,
            device=None if device.type == "cpu" else str(device),
            # Ranks whose GPUs differ in memory would choose different micro-batches.
            versions=versions() | {"micro-batch": str(trainer.datamodule.plan.micro_batch_size)},
            configuration=configuration_hash(self.configuration),
            start=self.start,
            sees_run_directory=_appears(mark),  # the nodes share the directory if each rank sees the file
        )
        with _network(trainer.global_rank, "the first exchange"):
            ranks = group.gather(info)
        if trainer.is_global_zero:
            mark.unlink(missing_ok=True)
        return ranks

    def _abort(self, trainer: Trainer, lines: list[str], error: type[UserError], code: int) -> None:
        """End all ranks; all have the same lines, and rank 0 prints them."""
        if trainer.is_global_zero:
            for line in lines[:-1]:
                print(f"error: {line}", file=sys.stderr, flush=True)
            raise error(lines[-1])
        time.sleep(5)  # the launcher ends all ranks with the first one, which must be rank 0
        raise SystemExit(code)


@contextmanager
def _network(rank: int, operation: str) -> Iterator[None]:
    """Turn an error of torch.distributed into a TransientError that names this node."""
    try:
        yield
    except RuntimeError as error:  # the base class of torch.distributed's errors
        fact = f"node {node_name()}, rank {rank}: {operation} failed"
        raise TransientError(f"{fact} ({first_line(error)})") from error


def _reduce(trainer: Trainer, ranks: int) -> None:
    """Check one all-reduce over the devices: the sum of (rank + 1) shows missing and repeated ranks."""
    expected = ranks * (ranks + 1) // 2
    total = torch.tensor([trainer.global_rank + 1], device=trainer.strategy.root_device)
    with _network(trainer.global_rank, "the first all-reduce"):
        torch.distributed.all_reduce(total)
        result = int(total)  # waits for the GPU, which reports its errors here
    if result != expected:
        raise UserError(
            f"node {node_name()}, rank {trainer.global_rank}: the first all-reduce gave {result}, not {expected}"
        )


def _touch(mark: Path) -> None:
    """Create an empty file, which works on a full disk, and remove those of killed starts."""
    try:
        for old in mark.parent.glob(f"{MARK}*"):
            old.unlink(missing_ok=True)
        mark.touch()
    except OSError as error:
        raise TransientError(f"node {node_name()}: {mark} cannot be created ({error.strerror or error})") from error


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SHARED_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return path.exists()
