"""Features of any torch network, named in the configuration."""

import pkgutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aim_lightning.metrics.features.network import RESIZING, FeatureNetwork, read_weights
from aim_lightning.utils.errors import UserError


class TorchFeatures(FeatureNetwork):
    """Features of one layer of a network that an importable function or class builds.

    Args:
        factory: dotted name of the function or class, such as ``torchvision.models.resnet18``.
        weights: file of its state_dict, written by torch.save.
        name: in metric names: ``fd_NAME``.
        num_features: values per image.
        input_size: side in pixels that images are resized to (bilinear with antialias).
        options: keyword arguments of `factory`.
        layer: dotted name of the module whose output is used; empty for the output of the network. Outputs of more
            than two dimensions are averaged over positions.
        mean: subtracted from the channels, scaled to [0, 1].
        std: divides the channels after that.
    """

    def __init__(
        self,
        factory: str,
        weights: str,
        name: str,
        num_features: int,
        input_size: int = 224,
        options: dict[str, Any] | None = None,
        layer: str = "",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.factory, self.weights, self.options, self.layer = factory, weights, options or {}, layer
        self.name, self.metric_name = name, f"fd_{name}"
        self.num_features, self.input_size = num_features, input_size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.recipe = {
            "factory": f"{factory}({', '.join(f'{key}={value}' for key, value in self.options.items())})",
            "resizing": RESIZING,
            "rounding": "none",
            "scaling": f"(x / 255 - {list(mean)}) / {list(std)}",
            "features": f"{layer or 'output'}, mean over positions",
        }

    def _build(self) -> nn.Module:
        factory = f"features.init_args.factory {self.factory}"
        try:
            build = pkgutil.resolve_name(self.factory)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"{factory} cannot be imported ({error}); correct the name") from None
        try:
            network = build(**self.options)
        except (TypeError, ValueError) as error:
            raise UserError(f"{factory} refuses its options: {_shortened(error)}") from None
        if not isinstance(network, nn.Module):
            raise UserError(f"{factory} returns no torch module; name a class or function that builds one")
        try:
            network.load_state_dict(read_weights(self.weights_path()))
        except (RuntimeError, TypeError) as error:
            raise UserError(f"{self.weights} does not fit {self.factory}: {_shortened(error)}") from None
        if self.layer:
            try:
                self._keep_output(network.get_submodule(self.layer))
            except AttributeError:
                raise UserError(f"features.init_args.layer {self.layer!r} is no module of {self.factory}") from None
        return network

    def _features(self, images: Tensor) -> Tensor:
        result = self.network((self._resized(images) / 255 - self.mean) / self.std)
        result = self.__dict__.pop("inner_output") if self.layer else result
        # Feature maps become one vector per image.
        features = result.flatten(2).mean(2) if result.ndim > 2 else result
        if features.shape[1:] != (self.num_features,):
            shape = tuple(features.shape[1:])
            raise UserError(f"{self.name} gives features of shape {shape}; set features.init_args.num_features to it")
        return features.float()


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
