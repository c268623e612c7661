"""LPIPS: torchmetrics' network, built once, with VGG16 weights from a file (arXiv 1801.03924)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from aim_lightning.metrics.weights_file import existing_file, read_weights
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file

SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"
SHA256_START = "397923af"
USED, UNUSED = "features.", "classifier."


class PerceptualDistance:
    """LPIPS with VGG16 between images, differentiable; a loss and a metric.

    Frozen, and no torch module: whoever holds it neither trains nor stores it. The constructor reads nothing.

    Args:
        weights: file with torchvision's VGG16 (see `SOURCE`); its `features.` alone are enough.
    """

    def __init__(self, weights: str | Path) -> None:
        self.weights = weights
        self.network: nn.Module | None = None

    def load(self) -> "PerceptualDistance":
        """Read the weights, once; returns self.

        Raises:
            UserError: the file is missing, damaged, or of another network.
        """
        if self.network is None:
            path = existing_file(self.weights, f"save {SOURCE} there, or go without LPIPS")
            if not sha256_file(path).startswith(SHA256_START):
                warnings.warn(f"{path} is not {SOURCE}: this LPIPS compares with no other", stacklevel=2)
            with torch.inference_mode(False), _vgg16_made_of(path):  # Lightning validates in inference mode
                metric = LearnedPerceptualImagePatchSimilarity(net_type="vgg")
            self.network = metric.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        return self

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """Distances (B,), float32, of images (B, 3, H, W) in about [-1, 1]; at least 16 pixels a side.

        torchmetrics' own update would refuse reconstructions that leave [-1, 1] a little.
        """
        self._move(one.device)
        return self.network(one, other).float().flatten()

    def _move(self, device: torch.device) -> None:
        if self.network is None:
            raise RuntimeError("LPIPS has no weights yet: call load() before the first image")
        if next(self.network.parameters()).device != device:
            with torch.inference_mode(False):
                self.network.to(device)


@contextmanager
def _vgg16_made_of(path: Path) -> Iterator[None]:
    """Inside, torchvision's vgg16 has the weights of a file: torchmetrics would download them."""
    original = torchvision.models.vgg16

    def vgg16(**options) -> nn.Module:
        with torch.device("meta"):  # the classifier, nine tenths of the weights, is never made
            network = original(weights=None)
        network.features.load_state_dict(_features(path, network.features), assign=True)
        return network

    torchvision.models.vgg16 = vgg16
    try:
        yield
    finally:
        torchvision.models.vgg16 = original


def _features(path: Path, features: nn.Module) -> dict[str, Tensor]:
    """The convolutions' weights, each of the right shape, and nothing that VGG16 does not have."""
    weights = read_weights(path)
    weights = weights if isinstance(weights, dict) else {}
    found = {name.removeprefix(USED): value for name, value in weights.items() if name.startswith(USED)}
    surplus = [name for name in weights if not name.startswith((USED, UNUSED))]
    wanted = {name: value.shape for name, value in features.state_dict().items()}
    if surplus or {name: value.shape for name, value in found.items()} != wanted:
        raise UserError(f"{path} holds other weights than torchvision's VGG16; use {SOURCE}")
    return {name: value.float() for name, value in found.items()}
