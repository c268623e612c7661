"""ADM's reference files: VIRTUAL_imagenet256_labeled.npz and similar (github.com/openai/guided-diffusion)."""

import numpy as np
import torch
from torch import Tensor

from aim_lightning.metrics.features import FEATURES, SPATIAL, FeatureNetwork
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.npz import NpzFile

# Output of the network -> names of mean and covariance in the file.
STATISTICS = {FEATURES: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
IMAGES = "arr_0"
PUBLISHED = "fid"  # metric name of the published Inception's weights only


def adm_gaussians(file: NpzFile, network: FeatureNetwork) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the published mean (F,) and covariance (F, F) per output of the network; empty if the file has none.

    They belong to the features of the published Inception. For any other network or weights, the images in the file
    are used instead.

    Raises:
        UserError: a damaged file, arrays of other shapes, or another network and no images.
    """
    present = {output: names for output, names in STATISTICS.items() if names[0] in file}
    if present and network.metric_name != PUBLISHED:
        if IMAGES in file:
            return {}
        raise UserError(
            f"{file.path} holds statistics of the published Inception only, and no images (arr_0) for "
            f"{network.metric_name}; give another reference"
        )
    sizes = network.output_sizes()
    return {output: _gaussian(file, *names, sizes[output]) for output, names in present.items()}


def _gaussian(file: NpzFile, mean: str, covariance: str, size: int) -> tuple[Tensor, Tensor]:
    values = []
    for name, shape in ((mean, (size,)), (covariance, (size, size))):
        array = file.array(name)
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"{file.path}, array {name}: {array.dtype} {array.shape}, expected finite floats {shape}")
        values.append(torch.from_numpy(array.astype(np.float64)))
    return tuple(values)
