"""Asks every rank for what must be the same before the first batch."""

import os
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.cluster.job import Job
from aim_lightning.cluster.preflight import RankFacts, configuration_hash, faults, versions
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import node_name

SHARED_SECONDS = 10.0  # network file systems show new files late


class Preflight(Callback):
    """Always on with several ranks; the command line adds it.

    Args:
        run_dir: must be one folder for all nodes.
        configuration: the composed document.
        start: name of the checkpoint that this rank has chosen.

    Raises:
        UserError: on every rank, when anything differs; rank 0 names the nodes, a line a fault.
    """

    def __init__(self, run_dir: str, configuration: dict, start: str) -> None:
        self.run_dir, self.configuration, self.start = Path(run_dir), configuration, start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        ranks = self._gather(trainer)
        lines = faults(ranks, str(self.run_dir)) or _reduce(trainer, ranks)
        if lines:
            self._refuse(trainer, lines)

    def _gather(self, trainer: Trainer) -> list[RankFacts]:
        token = [None]
        mark = self.run_dir / f".preflight-{Job.current().id if Job.current() else 'local'}"
        if trainer.is_global_zero:
            token[0] = f"{os.getpid()} {time.time()}"
            mark.write_text(token[0])
        torch.distributed.broadcast_object_list(token, src=0)
        mine = RankFacts(
            node=node_name(),
            rank=trainer.global_rank,
            device=None if trainer.strategy.root_device.type == "cpu" else str(trainer.strategy.root_device),
            world_size=trainer.world_size,
            versions=versions(),
            configuration=configuration_hash(self.configuration),
            start=self.start,
            sees_run_directory=_appears(mark, token[0]),
        )
        ranks: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, mine)
        if trainer.is_global_zero:
            mark.unlink(missing_ok=True)
        return ranks

    def _refuse(self, trainer: Trainer, lines: list[str]) -> None:
        """Rank 0 speaks, then all end: the first to end takes the others along."""
        if trainer.is_global_zero:
            for line in lines[:-1]:
                print(f"error: {line}", file=sys.stderr, flush=True)
            raise UserError(lines[-1])
        time.sleep(5)
        raise SystemExit(2)


def _reduce(trainer: Trainer, ranks: list[RankFacts]) -> list[str]:
    """One all-reduce over the devices: the sum of (rank + 1) tells who is missing or counted twice."""
    expected = len(ranks) * (len(ranks) + 1) // 2
    total = torch.tensor([trainer.global_rank + 1], device=trainer.strategy.root_device)
    try:
        torch.distributed.all_reduce(total)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        return [f"node {node_name()}, rank {trainer.global_rank}: the first all-reduce failed ({reason})"]
    if int(total) == expected:
        return []
    return [f"node {node_name()}, rank {trainer.global_rank}: the first all-reduce gave {int(total)}, not {expected}"]


def _appears(path: Path, text: str) -> bool:
    deadline = time.monotonic() + SHARED_SECONDS
    while time.monotonic() < deadline:
        try:
            if path.read_text() == text:
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False
