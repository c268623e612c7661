"""The base class of feature networks; it checks images and computes in float32 and in chunks."""

import pickle
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file
from aim_lightning.utils.precision import exact_products

FEATURES, SPATIAL, LOGITS = "features", "spatial", "logits"
RESIZING = "bilinear, antialias, half-pixel centres"  # in protocols
CPU_CHUNK = 32  # images per pass on a CPU: larger chunks are slower (measured at 64 to 128 pixels)


class FeatureNetwork(nn.Module, ABC):
    """A frozen network that metrics call on uint8 images.

    The constructor reads nothing, so that configurations without weights files can be built; `load` reads.

    Subclasses implement `_features`, or `_outputs` where there are several. They set `name` (of the network),
    `metric_name` (of the Fréchet distance on its features), `num_features`, `input_size` (side of the network's input
    in pixels), `recipe` (further entries of `protocol`), `weights` (the file) and `hint` (how to obtain it).
    """

    name: str
    metric_name: str
    num_features: int
    input_size: int
    precision: str = "float32"  # or "tf32", on NVIDIA GPUs
    recipe: ClassVar[dict[str, str]]
    weights: str | Path
    hint = "set features.init_args.weights"

    def __init__(self) -> None:
        super().__init__()
        self.register_module("network", None)
        # Empty buffer that records the device of a `.to(device)` before `load`.
        self.register_buffer("_device_marker", torch.empty(0), persistent=False)
        super().train(False)

    def weights_path(self) -> Path:
        """Return the file that `load` reads.

        Raises:
            UserError: the file is missing.
        """
        return existing_file(self.weights, self.hint)

    @abstractmethod
    def _build(self) -> nn.Module:
        """Build the network with its weights."""

    def _features(self, images: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to float32 (B, num_features)."""
        raise NotImplementedError

    def _keep_output(self, module: nn.Module) -> None:
        """Store the output of an inner module in `inner_output`; the layers after it also run."""
        # Past nn.Module's attributes: the tensor is neither a parameter nor a buffer.
        module.register_forward_hook(lambda _, __, result: self.__dict__.update(inner_output=result))

    def _resized(self, images: Tensor) -> Tensor:
        """Resize to (B, 3, input_size, input_size), float32, as `RESIZING` describes."""
        size = (self.input_size, self.input_size)
        return nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)

    @property
    def name_ending(self) -> str:
        """Return the ending of the names of other metrics on these features.

        It is empty for the published Inception only, whose scores may carry the names of papers, such as kid.
        """
        return "" if self.metric_name == "fid" else f"_{self.metric_name.removeprefix('fd_')}"

    @property
    def device(self) -> torch.device:
        """Return the device of the weights, now or after `load`."""
        return self._device_marker.device

    @cached_property
    def weights_hash(self) -> str:
        """Return the hex sha256 of the weights file.

        Raises:
            UserError: the file is missing.
        """
        return sha256_file(self.weights_path())

    def protocol(self) -> dict[str, Any]:
        """Return plain values that determine the features: equal protocols give equal features."""
        values = {"network": self.name, "weights_sha256": self.weights_hash, "num_features": self.num_features}
        return values | {"input_size": self.input_size, "precision": self.precision} | self.recipe

    def load(self, device: torch.device | None = None) -> "FeatureNetwork":
        """Read the weights, once, and return self.

        Args:
            device: where to compute; None = the current device.

        Raises:
            UserError: the file is missing or contains something else, or the device does not support `precision`.
        """
        if device is not None:
            self.to(device)
        if self.network is None:
            # Lightning evaluates in inference mode, whose tensors cannot be moved later.
            with torch.inference_mode(False):
                self.network = self._build().requires_grad_(False).eval().to(self.device)
        return self

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in evaluation mode, also when the module around it is trained."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features without gradients, in `precision` instead of the caller's precision.

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
        """Compute all outputs of `output_sizes` in one pass; arguments and errors as in `forward`."""
        if images.dtype != torch.uint8:
            raise ValueError(f"{self.name} takes uint8 images (0..255), not {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name} takes images of shape (B, 3, H, W), not {tuple(images.shape)}")
        if self.network is None:
            raise RuntimeError(f"{self.name} has no weights yet: call load() before the first image")
        if next(self.network.parameters()).dtype != torch.float32:
            raise RuntimeError(f"{self.name} was cast from float32; keep it out of .to(dtype)")
        if not len(images):
            return {name: images.new_zeros(0, size).float() for name, size in self.output_sizes().items()}
        chunk = CPU_CHUNK if images.device.type == "cpu" else len(images)
        # TF32 in convolutions only, as in torch-fidelity's command; the caller's settings have no effect.
        exact = exact_products(self.precision == "tf32", in_matmul=False)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False), exact:
            parts = [self._outputs(part) for part in images.split(chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def output_sizes(self) -> dict[str, int]:
        """Return the values per image by output: "features", and for Inception also "spatial" and "logits"."""
        return {FEATURES: self.num_features}

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        return {FEATURES: self._features(images)}


def fold_norms(network: nn.Module, *pairs: tuple[str, str]) -> None:
    """Fold batch norms into the convolutions before them: the same function with less work.

    Args:
        network: in evaluation mode.
        *pairs: names of a convolution and its batch norm in the modules of the network.
    """
    for module in network.modules():
        for conv, norm in pairs:
            if hasattr(module, conv) and hasattr(module, norm):
                fused = nn.utils.fusion.fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, fused)
                setattr(module, norm, nn.Identity())


def existing_file(path: str | Path, hint: str) -> Path:
    """Return the path of a weights file.

    Args:
        path: of the file.
        hint: how to obtain the file, for the error.

    Raises:
        UserError: the file is missing.
    """
    if not Path(path).is_file():
        raise UserError(f"weights file {path} does not exist; {hint}")
    return Path(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU, without running code of the file.

    Raises:
        UserError: a damaged file, or one of something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"weights file {path} is damaged or no file of weights ({type(error).__name__})") from None
