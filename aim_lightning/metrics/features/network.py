"""What all feature networks share: images are checked, run in float32 and in chunks."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aim_lightning.utils.files import sha256_file
from aim_lightning.utils.precision import exact_products

FEATURES, SPATIAL, LOGITS = "features", "spatial", "logits"
CPU_CHUNK = 32  # images at once on a CPU: more runs slower there (measured at 64 to 128 pixels)


class FeatureNetwork(nn.Module, ABC):
    """A network that is never trained; the metrics call it on uint8 images.

    The constructor reads nothing, so that configs without weights files can be built; `load` reads.

    Subclasses set `name` (of the network), `metric_name` (of the Fréchet distance on its features),
    `num_features`, `input_size` (pixels a side that the network sees) and `recipe` (what `protocol` adds).
    """

    name: str
    metric_name: str
    num_features: int
    input_size: int
    precision: str = "float32"  # or "tf32", on NVIDIA GPUs
    recipe: ClassVar[dict[str, str]]

    def __init__(self) -> None:
        super().__init__()
        self.register_module("network", None)
        # Remembers the device of a `.to(device)` that comes before `load`.
        self.register_buffer("_place", torch.empty(0), persistent=False)
        super().train(False)

    @abstractmethod
    def weights_path(self) -> Path:
        """The file that `load` reads. Raises UserError when it is missing."""

    @abstractmethod
    def _build(self) -> nn.Module:
        """The network with its weights."""

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 (B, num_features)."""

    @property
    def name_ending(self) -> str:
        """Of the names of all other metrics on these features: nothing for the published Inception, whose scores alone
        may be called as in papers, such as kid."""
        return "" if self.metric_name == "fid" else f"_{self.metric_name.removeprefix('fd_')}"

    @property
    def device(self) -> torch.device:
        """Where the weights are, or will be after `load`."""
        return self._place.device

    @cached_property
    def weights_hash(self) -> str:
        """Hex sha256 of the weights file. Raises UserError when it is missing."""
        return sha256_file(self.weights_path())

    def protocol(self) -> dict[str, Any]:
        """Plain values that fix the features: two networks with equal protocols give equal features."""
        values = {
            "network": self.name,
            "weights_sha256": self.weights_hash,
            "num_features": self.num_features,
        }
        return values | {"input_size": self.input_size, "precision": self.precision} | self.recipe

    def load(self, device: torch.device | None = None) -> "FeatureNetwork":
        """Read the weights, once, onto `device` (None: where it is); returns self.

        Raises:
            UserError: the file is missing or something else, or `precision` cannot be had on the device.
        """
        if device is not None:
            self.to(device)
        if self.network is None:
            # Lightning evaluates in inference mode, whose tensors could not be moved later.
            with torch.inference_mode(False):
                self.network = self._build().requires_grad_(False).eval().to(self.device)
        return self

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stays in evaluation mode, whatever the module around it does."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features without gradients, in `precision` whatever precision the caller trains in.

        Args:
            images: uint8 (B, 3, H, W), 0..255, any size; B may be 0.

        Returns:
            float32 (B, num_features), on the device of `images`.

        Raises:
            ValueError: another dtype or shape.
            RuntimeError: `load` was not called, or the weights are no longer float32.
        """
        return self.outputs(images)[FEATURES]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Everything that metrics use, from one pass: see `output_sizes`; arguments and errors as in `forward`."""
        self._check(images)
        if not len(images):
            sizes = self.output_sizes().items()
            return {name: torch.zeros(0, size, device=images.device) for name, size in sizes}
        chunk = CPU_CHUNK if images.device.type == "cpu" else len(images)
        # TF32 in convolutions alone, as torch-fidelity's command has it; the caller's settings do not count.
        exact = exact_products(self.precision == "tf32", in_matmul=False)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False), exact:
            parts = [self._outputs(part) for part in images.split(chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def output_sizes(self) -> dict[str, int]:
        """Values an image by output: "features" always; Inception has "spatial" and "logits" too."""
        return {FEATURES: self.num_features}

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        return {FEATURES: self._features(images)}

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise ValueError(f"{self.name} takes uint8 images (0..255), not {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name} takes images of shape (B, 3, H, W), not {tuple(images.shape)}")
        if self.network is None:
            raise RuntimeError(f"{self.name} has no weights yet: call load() before the first image")
        if next(self.network.parameters()).dtype != torch.float32:
            raise RuntimeError(f"{self.name} was cast from float32; keep it out of .to(dtype)")
