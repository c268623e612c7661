"""Lets `validate` stop between two batches, of validation and of scoring, on which all ranks agree."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.training.preemption import wake_llvm
from aim_lightning.cluster import signals
from aim_lightning.cluster.signals import Stopped
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.utils.process import beat

Item = TypeVar("Item")


class StopRequest(Callback):
    """Raises `Stopped` on every rank before the same round of batches; put it before all callbacks that score.

    Ranks may have different numbers of batches, which nobody knows before: the one that is through takes part in the
    rounds of the others.

    Args:
        step: optimizer steps in the checkpoint that is scored.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.group = torch.distributed.new_group(backend="gloo") if trainer.world_size > 1 else None
        if trainer.strategy.root_device.type == "cuda":
            wake_llvm()
        signals.keep()
        beat("what comes before the first validation batch")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.look(f"validation batch {batch_idx}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish("the end of validation")

    def between(self, items: Iterable[Item], phase: str) -> Iterator[Item]:
        """The items of this rank, with a look before each; every rank must use it up.

        Raises:
            UserError: an item could not be read; the other ranks are through then.
        """
        try:
            for item in items:
                self.look(phase)
                yield item
        except UserError:
            self.finish(phase)
            raise
        self.finish(phase)

    def finish(self, phase: str) -> None:
        """This rank is through: take part until all are."""
        while self.look(phase, busy=False):
            pass

    def look(self, phase: str, busy: bool = True) -> bool:
        """One round, which every rank takes part in; whether any of them has work left.

        Raises:
            Stopped: a rank has seen a signal.
        """
        beat(phase)
        signals.keep()
        said = torch.tensor([signals.received(), int(busy)])
        if self.group is not None:
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, group=self.group)
        agreed, others = said.tolist()
        if agreed:
            log(f"{signals.NAMES[agreed]}: stopping before {phase}, without results")
            raise Stopped(agreed, self.step)
        return bool(others)


def between(trainer: Trainer, items: Iterable[Item], phase: str) -> Iterator[Item]:
    """The items of this rank, each a sign of life; in `validate` it can stop before each of them."""
    found = next((callback for callback in trainer.callbacks if isinstance(callback, StopRequest)), None)
    if found is not None:
        yield from found.between(items, phase)
        return
    for item in items:
        beat(phase)
        yield item
