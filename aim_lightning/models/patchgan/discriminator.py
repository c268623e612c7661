"""PatchGAN: judges overlapping patches of an image (arXiv 1611.07004, section 3.2.2; names as in pix2pix)."""

from dataclasses import dataclass

from torch import Tensor, nn

from aim_lightning.models.patchgan.batch_norm import SyncedBatchNorm2d
from aim_lightning.utils.errors import UserError

WIDEST = 8  # times `channels`


@dataclass(frozen=True)
class PatchGANConfig:
    """Sizes of the discriminator.

    Args:
        num_layers: stride-2 convolutions. 3 scorer patches of 70x70 pixels, 2 of 34x34, 1 of 16x16.
        channels: width of the first layer; doubles with each, up to eight times.

    Raises:
        UserError: a number below 1.
    """

    num_layers: int = 3
    channels: int = 64

    def __post_init__(self) -> None:
        for name in ("num_layers", "channels"):
            if getattr(self, name) < 1:
                raise UserError(f"PatchGANConfig.{name} is {getattr(self, name)}; it must be at least 1")

    def patches(self, image_size: int) -> int:
        """Logits along one side of a square image; 0 or less where it is too small."""
        return image_size // 2**self.num_layers - 2


class PatchGAN(nn.Module):
    """Images in [-1, 1] to one logit a patch: above 0 means real."""

    def __init__(self, config: PatchGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**i, WIDEST) for i in range(config.num_layers + 1)]
        layers = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(config.num_layers):
            stride = 2 if i < config.num_layers - 1 else 1
            layers += [
                nn.Conv2d(widths[i], widths[i + 1], 4, stride=stride, padding=1, bias=False),
                SyncedBatchNorm2d(widths[i + 1]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to float32 logits (B, 1, patches, patches)."""
        return self.main(images_BCHW).float()


def _initialise(layer: nn.Module) -> None:
    """Weights N(0, 0.02), scales of the norms N(1, 0.02), biases 0."""
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if isinstance(layer, SyncedBatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)
