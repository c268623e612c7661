"""PatchGAN, which classifies overlapping patches of an image (arXiv 1611.07004, section 3.2.2; names as in pix2pix)."""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from aim_lightning.utils.ranges import Range, check_arguments

WIDEST = 8  # times `channels`


@dataclass(frozen=True)
class PatchGANConfig:
    """Set the sizes of the discriminator.

    Args:
        num_layers: stride-2 convolutions. 3 give patches of 70x70 pixels, 2 of 34x34, 1 of 16x16.
        channels: width of the first layer; doubles with each, up to eight times.

    Raises:
        UserError: a number below 1.
    """

    num_layers: int = 3
    channels: int = 64

    def __post_init__(self) -> None:
        check_arguments("PatchGANConfig.", PatchGANConfig, vars(self), Range(1))

    def patches(self, image_size: int) -> int:
        """Return the logits along one side of a square image; 0 or less where it is too small."""
        return image_size // 2**self.num_layers - 2


class PatchGAN(nn.Module):
    """Map images in [-1, 1] to one logit per patch: above 0 means real."""

    def __init__(self, config: PatchGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**i, WIDEST) for i in range(config.num_layers + 1)]
        layers = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(config.num_layers):
            stride = 2 if i < config.num_layers - 1 else 1
            # No bias: the norm that follows subtracts it again.
            conv = nn.Conv2d(widths[i], widths[i + 1], 4, stride=stride, padding=1, bias=False)
            layers += [conv, SyncedBatchNorm2d(widths[i + 1]), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_init_layer)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return float32 logits (B, 1, patches, patches) for images (B, 3, H, W)."""
        return self.main(images_BCHW).float()


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all ranks, on any device.

    torch's faster SyncBatchNorm does the same on GPUs only, and DDP refuses it on a CPU. Without a
    process group this is plain batch norm. Every rank must call it equally often.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W); every rank passes its own images, the same number on each."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return super().forward(x)
        values, count = x.float(), x.numel() // x.shape[1] * distributed.get_world_size()
        # Two collectives: E[(x - mean)^2] needs the global mean first, E[x^2] - mean^2 would cancel in float32.
        mean_C = _SumOfRanks.apply(values.sum((0, 2, 3))) / count
        centred = values - _wide(mean_C)
        variance_C = _SumOfRanks.apply(centred.square().sum((0, 2, 3))) / count
        # As in torch, the running variance is the unbiased one, and normalisation uses the biased one.
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * count / max(count - 1, 1), self.momentum)
        normal = centred * _wide((variance_C + self.eps).rsqrt())
        return (normal * _wide(self.weight) + _wide(self.bias)).to(x.dtype)


class _SumOfRanks(torch.autograd.Function):
    """Sum over all ranks, differentiable."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        # all_reduce works in place, and autograd keeps the input.
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's value, so the gradient is the sum of all ranks' gradients.
        return _SumOfRanks.forward(ctx, gradient)


def _wide(vector_C: Tensor) -> Tensor:
    return vector_C[None, :, None, None]


def _init_layer(layer: nn.Module) -> None:
    """Initialise weights from N(0, 0.02), scales of the norms from N(1, 0.02), biases to 0 (as in pix2pix)."""
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if isinstance(layer, SyncedBatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)
