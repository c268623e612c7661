"""Asks every rank for what must be the same before the first batch."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.cluster.rank_consistency import RankFacts, configuration_hash, faults, late_views, versions
from aim_lightning.utils.errors import TransientError, UserError
from aim_lightning.utils.process import node_name

SHARED_SECONDS = 10.0  # network file systems show new files late
MARK = ".preflight-"


class Preflight(Callback):
    """Always on with several ranks; the command line adds it.

    Args:
        run_dir: must be one directory for all nodes.
        configuration: the composed document.
        start: name of the checkpoint that this rank has chosen.

    Raises:
        UserError: on rank 0, when anything differs: it names the nodes, a line a fault; the other ranks end with it.
            On any rank for whom the first sum comes out wrong.
        TransientError: on each rank whose exchange with the others fails, or whose view of the shared directory is old.
    """

    def __init__(self, run_dir: str, configuration: dict, start: str) -> None:
        self.run_dir, self.configuration, self.start = Path(run_dir), configuration, start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        ranks = self._gather(trainer)
        if lines := faults(ranks, str(self.run_dir)):
            self._refuse(trainer, lines, UserError, 2)
        if lines := late_views(ranks):
            self._refuse(trainer, lines, TransientError, TransientError.exit_code)
        _reduce(trainer, len(ranks))

    def _gather(self, trainer: Trainer) -> list[RankFacts]:
        name = [None]
        if trainer.is_global_zero:
            name[0] = f"{MARK}{os.getpid()}-{time.time_ns()}"
            _touch(self.run_dir / name[0])
        with _network(trainer.global_rank, "the first broadcast"):
            torch.distributed.broadcast_object_list(name, src=0)
        mark = self.run_dir / name[0]
        mine = RankFacts(
            node=node_name(),
            rank=trainer.global_rank,
            device=None if trainer.strategy.root_device.type == "cpu" else str(trainer.strategy.root_device),
            world_size=trainer.world_size,
            versions=versions(),
            configuration=configuration_hash(self.configuration),
            start=self.start,
            sees_run_directory=_appears(mark),
        )
        ranks: list = [None] * torch.distributed.get_world_size()
        with _network(trainer.global_rank, "the first exchange"):
            torch.distributed.all_gather_object(ranks, mine)
        if trainer.is_global_zero:
            mark.unlink(missing_ok=True)
        return ranks

    def _refuse(self, trainer: Trainer, lines: list[str], kind: type[UserError], code: int) -> None:
        """All ranks know the lines: rank 0 speaks, then all end, the first to end taking the others along."""
        if trainer.is_global_zero:
            for line in lines[:-1]:
                print(f"error: {line}", file=sys.stderr, flush=True)
            raise kind(lines[-1])
        time.sleep(5)
        raise SystemExit(code)


@contextmanager
def _network(rank: int, what: str) -> Iterator[None]:
    """Inside, ranks talk: the one that cannot names its node, whichever it is."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are of this kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TransientError(f"node {node_name()}, rank {rank}: {what} failed ({reason})") from error


def _reduce(trainer: Trainer, ranks: int) -> None:
    """One all-reduce over the devices: the sum of (rank + 1) tells who is missing or counted twice."""
    expected = ranks * (ranks + 1) // 2
    total = torch.tensor([trainer.global_rank + 1], device=trainer.strategy.root_device)
    with _network(trainer.global_rank, "the first all-reduce"):
        torch.distributed.all_reduce(total)
        found = int(total)  # a GPU reports its errors here
    if found != expected:
        raise UserError(
            f"node {node_name()}, rank {trainer.global_rank}: the first all-reduce gave {found}, not {expected}"
        )


def _touch(mark: Path) -> None:
    """A file without content: a full disk takes it. Those of starts that were killed go."""
    try:
        for old in mark.parent.glob(f"{MARK}*"):
            old.unlink(missing_ok=True)
        mark.touch()
    except OSError as error:
        raise TransientError(f"node {node_name()}: {mark} cannot be made ({error.strerror or error})") from error


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SHARED_SECONDS
    while time.monotonic() < deadline:
        if path.exists():
            return True
        time.sleep(0.2)
    return False
