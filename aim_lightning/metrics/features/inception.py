"""The Inception network of FID."""

import io
import warnings
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from aim_lightning.metrics.features.network import FEATURES, LOGITS, SPATIAL, FeatureNetwork, fold_norms, read_weights
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import check_arguments


class InceptionFeatures(FeatureNetwork):
    """The 2048 features of FID: torch-fidelity's port of the Inception of 2015-12-05, with its resizing.

    Two more outputs: "spatial" holds the first 7 of the 192 channels of the 1x1 branch of block mixed_6 on its 17x17
    grid, as sFID uses them (arXiv 2103.03841; 2,023 values). "logits" holds 1,008 logits without the bias, as the
    Inception Score uses them.

    Args:
        weights: file of the weights (see `SOURCE`); nothing is downloaded.
        precision: of the convolutions on NVIDIA GPUs: ``float32``, or ``tf32``, which is faster and torch-fidelity's
            default there. The protocol records it.

    Raises:
        UserError: an unknown precision.
    """

    SOURCE = "weights-inception-2015-12-05-6726825d.pth from release v0.2.0 of github.com/toshas/torch-fidelity"
    # Of the file behind published FIDs. Other weights give other features, hence other metric names.
    SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

    hint = "run `aim-lightning download inception` or make weights-inception, or set features.init_args.weights "
    hint += f"to a copy of {SOURCE}"

    name = "inception_2015_12_05"
    num_features = 2048
    input_size = 299
    recipe: ClassVar[dict[str, str]] = {
        "resizing": "bilinear as TensorFlow 1, no antialias",
        "rounding": "none",
        "scaling": "(x - 128) / 128",
        "features": "pool3",
    }

    def __init__(
        self,
        weights: str = "weights/pt_inception-2015-12-05-6726825d.pth",
        precision: Literal["float32", "tf32"] = "float32",
    ) -> None:
        super().__init__()
        check_arguments("InceptionFeatures.", InceptionFeatures.__init__, {"precision": precision})
        self.weights, self.precision = weights, precision

    @property
    def metric_name(self) -> str:
        """Return ``fid``, or for other weights than the published ones ``fd_inception_`` and the start of their hash.

        Raises:
            UserError: the weights file is missing.
        """
        return "fid" if self.weights_hash == self.SHA256 else f"fd_inception_{self.weights_hash[:8]}"

    def _build(self) -> nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = self.weights_path()
        if self.precision == "tf32" and self.device.type != "cuda":
            hint = f"which needs an NVIDIA GPU, not {self.device.type}; use float32"
            raise UserError(f"InceptionFeatures.precision is tf32, {hint}")
        if self.weights_hash != self.SHA256:
            consequence = f"its distances compare with none and are called {self.metric_name}"
            warnings.warn(f"{path} is not the Inception of published FIDs: {consequence}", stacklevel=3)
        # torch-fidelity unpickles files, which can run code; it gets a copy of tensors that were read safely.
        copy = io.BytesIO()
        torch.save(read_weights(path), copy)
        copy.seek(0)
        try:
            layers = ["2048", "logits_unbiased"]
            network = FeatureExtractorInceptionV3(self.name, layers, feature_extractor_weights_path=copy)
        except (RuntimeError, TypeError):
            raise UserError(f"{path} holds other weights than torch-fidelity's Inception; use {self.SOURCE}") from None
        fold_norms(network, ("conv", "bn"))
        # sFID uses an inner layer, which torch-fidelity does not return.
        self._keep_output(network.Mixed_6d.branch1x1)
        return network

    def output_sizes(self) -> dict[str, int]:
        """Return the values per image by output."""
        return {FEATURES: self.num_features, SPATIAL: 7 * 17 * 17, LOGITS: 1008}

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        features, logits = self.network(images)
        spatial = self.__dict__.pop("inner_output")[:, :7].permute(0, 2, 3, 1).flatten(1).float()
        return {FEATURES: features, SPATIAL: spatial, LOGITS: logits}
