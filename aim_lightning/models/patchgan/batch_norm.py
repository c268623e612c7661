"""Batch norm over the images of all processes."""

import torch
from torch import Tensor, distributed, nn


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """torch's SyncBatchNorm does the same on GPUs alone, and DDP refuses it on a CPU; see `use_torch_sync`.

    Without a process group it is plain batch norm. Every process must call it equally often.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), each process its own images and as many as the others."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(x)
        values, count = x.float(), x.numel() // x.shape[1] * distributed.get_world_size()
        mean_C = _SumOfRanks.apply(values.sum((0, 2, 3))) / count
        centred = values - _wide(mean_C)
        variance_C = _SumOfRanks.apply(centred.square().sum((0, 2, 3))) / count
        self._remember(mean_C, variance_C * count / max(count - 1, 1))
        normal = centred * _wide((variance_C + self.eps).rsqrt())
        return (normal * _wide(self.weight) + _wide(self.bias)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, unbiased_C: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(unbiased_C, self.momentum)


class _SumOfRanks(torch.autograd.Function):
    """Sum over all processes, differentiable."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SumOfRanks.forward(ctx, gradient)


def _wide(vector_C: Tensor) -> Tensor:
    return vector_C[None, :, None, None]


def use_torch_sync(network: nn.Module) -> None:
    """Put torch's faster SyncBatchNorm in place of ours, weights and their names kept: for GPUs."""
    nn.SyncBatchNorm.convert_sync_batchnorm(network)
