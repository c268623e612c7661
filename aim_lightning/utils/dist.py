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
    """The default process group, or a group of one rank where torch.distributed is not initialized."""

    def __init__(self) -> None:
        initialized = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if initialized else 0
        self.world_size = dist.get_world_size() if initialized else 1
        self.is_rank_zero = self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return every world_size-th item, starting at this rank's number."""
        return items[self.rank :: self.world_size]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank; also a barrier.

        Args:
            value: any object that pickle supports; only that of rank 0 counts.
        """
        if self.world_size == 1:
            return value
        box = [value]
        # Every rank blocks here until rank 0 has sent.
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks in rank order, on every rank.

        Args:
            value: any object that pickle supports.
        """
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def on_rank0(self, work: Callable[[], Item]) -> Item:
        """Call `work` on rank 0 only and return its result on every rank.

        Use it for results that depend on a disk, since nodes may see different states of a shared file system.

        Raises:
            UserError, OSError: that of `work`, on every rank.
        """
        result, error = self.broadcast(_attempt(work) if self.is_rank_zero else None)
        if error is not None:
            raise error
        return result

    def run_on_all(self, work: Callable[[], Item]) -> Item:
        """Call `work` on every rank and return this rank's result.

        Args:
            work: must not contain collectives, since a rank may leave it early by an error.

        Raises:
            UserError, OSError: that of the lowest failed rank, on every rank once all have finished.
        """
        result, error = _attempt(work)
        # A failed rank joins this collective too, otherwise the others would wait for it.
        if errors := [error for error in self.gather(error) if error is not None]:
            raise errors[0]
        return result

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all ranks."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def cat(self, part_B: Tensor) -> Tensor:
        """Concatenate the ranks' tensors (B, ...), all of one shape, in the order of the global batch."""
        if self.world_size == 1:
            return part_B
        part_B = part_B.contiguous()
        parts = [torch.empty_like(part_B) for _ in range(self.world_size)]
        dist.all_gather(parts, part_B)
        return torch.cat(parts)

    def average_gradients(self, network: nn.Module) -> None:
        """Replace all gradients by their mean over ranks, for a network that DDP does not wrap."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        # One all-reduce over a flat buffer instead of one per parameter.
        mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _attempt(work: Callable[[], Item]) -> tuple[Item | None, Exception | None]:
    """Return the result of `work` and None, or None and the error that it raised."""
    try:
        return work(), None
    except (UserError, OSError) as error:
        return None, error
