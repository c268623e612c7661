"""Values of all processes; every process must call these equally often. Without a process group nothing happens."""

import torch
from torch import Tensor, distributed, nn


def mean_of_ranks(value: Tensor) -> Tensor:
    """Mean over all processes."""
    if not _several():
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def rows_of_ranks(part_B: Tensor) -> Tensor:
    """The processes' parts (B, ...), all of one shape, one after the other: the order of the global batch."""
    if not _several():
        return part_B
    mine = part_B.contiguous()
    parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, mine)
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
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
