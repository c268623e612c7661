"""Collective operations over all ranks; without a process group they act on one rank.

Every rank must call each function equally often and in the same order, otherwise the group hangs.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aim_lightning.utils.errors import UserError

Item = TypeVar("Item")


class ProcessGroup:
    """This process among all; alone where no process group exists."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world_size = dist.get_world_size() if together else 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every world_size-th item, from this process's own on."""
        return items[self.rank :: self.world_size]

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in all of them; every process must call it. Also a barrier."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_rank0(self, work: Callable[[], Item]) -> Item:
        """What `work` gives on the first process, in all of them, every one of which must call it; for what depends on
        the disk, which need not look alike everywhere.

        Raises:
            UserError, OSError: that of `work`, in all of them.
        """
        answer, problem = None, None
        if self.is_rank_zero:
            try:
                answer = work()
            except (UserError, OSError) as error:
                problem = error
        answer, problem = self.broadcast((answer, problem))
        if problem is not None:
            raise problem
        return answer

    def run_on_all(self, work: Callable[[], Item]) -> Item:
        """What `work`, which must not wait for other processes, gives here; every process must call it.

        Raises:
            UserError, OSError: that of the first process whose `work` raised one, in all of them once all are through.
        """
        answer, problem = None, None
        try:
            answer = work()
        except (UserError, OSError) as error:
            problem = error
        problem = next((one for one in self.all(problem) if one is not None), None)
        if problem is not None:
            raise problem
        return answer

    def all(self, value: Any) -> list[Any]:
        """The values of all processes in order; every process must call it."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def mean_of_ranks(value: Tensor) -> Tensor:
    """Mean over all processes."""
    if not _several():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def rows_of_ranks(part_B: Tensor) -> Tensor:
    """The processes' parts (B, ...), all of one shape, one after the other: the order of the global batch."""
    if not _several():
        return part_B
    mine = part_B.contiguous()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.cat(parts)


def average_gradients(network: nn.Module) -> None:
    """Give every process the mean of all gradients, for a network that DDP leaves alone."""
    if not _several():
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    mean = mean_of_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
