"""LPIPS (arXiv 1801.03924): torchmetrics' network, built once, with VGG16 weights from a file."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from aim_lightning.metrics.features.network import existing_file, read_weights
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file

SOURCE = "https://download.pytorch.org/models/vgg16-397923af.pth"
SHA256_START = "397923af"
USED, UNUSED = "features.", "classifier."


class PerceptualDistance:
    """LPIPS with VGG16 between images, differentiable: a loss and a metric.

    It is no torch module, so that the module that holds it neither trains nor stores it. The constructor reads
    nothing.

    Args:
        weights: file with torchvision's VGG16 (see `SOURCE`); only its `features.` are needed.
    """

    def __init__(self, weights: str | Path) -> None:
        self.weights = weights
        self.network: nn.Module | None = None

    def load(self) -> "PerceptualDistance":
        """Read the weights, once, and return self.

        Raises:
            UserError: the file is missing, damaged, or of another network.
        """
        if self.network is None:
            hint = f"run `aim-lightning download vgg` (it saves {SOURCE}), or switch LPIPS off"
            path = existing_file(self.weights, hint)
            if not sha256_file(path).startswith(SHA256_START):
                warnings.warn(f"{path} is not {SOURCE}: this LPIPS compares with no other", stacklevel=2)
            # Lightning validates in inference mode, whose tensors cannot enter a backward pass later.
            with torch.inference_mode(False), _vgg16_from(path):
                metric = LearnedPerceptualImagePatchSimilarity(net_type="vgg")
            self.network = metric.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        return self

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the distances, float32 (B,), between images (B, 3, H, W) in about [-1, 1] of at least 16 pixels.

        torchmetrics' own update would refuse reconstructions slightly outside [-1, 1].
        """
        if next(self.network.parameters()).device != images.device:
            with torch.inference_mode(False):
                self.network.to(images.device)
        return self.network(images, others).float().flatten()


@contextmanager
def _vgg16_from(path: Path) -> Iterator[None]:
    """Replace torchvision's vgg16 by one with the weights of a file: torchmetrics would download them."""
    original = torchvision.models.vgg16

    def vgg16(**options) -> nn.Module:
        with torch.device("meta"):  # allocates nothing for the classifier, nine tenths of the weights
            network = original(weights=None)
        weights = read_weights(path)
        try:
            surplus = [name for name in weights if not name.startswith((USED, UNUSED))]
            tensors = {name.removeprefix(USED): value.float() for name, value in weights.items() if USED in name}
            network.features.load_state_dict(tensors, assign=True)
        except (AttributeError, RuntimeError):
            surplus = True
        if surplus:
            raise UserError(f"{path} holds other weights than torchvision's VGG16; use {SOURCE}")
        return network

    # torchmetrics looks the function up by this name when it builds its network.
    torchvision.models.vgg16 = vgg16
    try:
        yield
    finally:
        torchvision.models.vgg16 = original
