"""Statistics of the reference images: gaussians (computed, or those of ADM's files), features and a linear probe."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_lightning.metrics.features import FEATURES, SPATIAL, FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance, mean_and_covariance
from aim_lightning.metrics.probe import LinearProbe
from aim_lightning.metrics.sample_features import SampleFeatures
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.npz import NpzFile
from aim_lightning.utils.random import hash_int64

FORMAT = 2  # increase it when the same inputs give other values
NEIGHBOUR_IMAGES = 10_000  # kept for precision, recall and kernel distances, as in ADM's reference files
PROBE_IMAGES = 50_000
PIXELS = "pixels_sha256"  # entry of `source` that is computed while reading, and therefore cached
_PARTS = ("mean", "covariance")
# ADM's reference files, VIRTUAL_imagenet256_labeled.npz and similar (github.com/openai/guided-diffusion):
# output of the network -> names of mean and covariance in the file.
STATISTICS = {FEATURES: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
IMAGES = "arr_0"
PUBLISHED = "fid"  # metric name of the published Inception's weights only


@dataclass(frozen=True)
class ReferenceImages:
    """Statistics of the reference images, on the CPU.

    Args:
        gaussians: output of the network -> mean (F,) and covariance (F, F), float64.
        features: (M, F) float32 of single images; None for published statistics.
        probe: weight (C, F) and bias (C,) of a `LinearProbe`; None without labels.
        source: origin of the images, plain values for the protocol.
        count: number of images behind the gaussians; None for published ones, which do not contain it.
        memo: cache of values computed from the statistics, such as the radii of their manifold.
    """

    gaussians: dict[str, tuple[Tensor, Tensor]]
    features: Tensor | None
    probe: tuple[Tensor, Tensor] | None
    source: dict[str, Any] = field(default_factory=dict)
    count: int | None = None
    memo: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """Return the content of a cache file; inverse of `from_tensors`."""
        named = {f"{part}.{name}": pair[i] for name, pair in self.gaussians.items() for i, part in enumerate(_PARTS)}
        named |= {"rows": self.features} if self.features is not None else {}
        named |= {"probe_weight": self.probe[0], "probe_bias": self.probe[1]} if self.probe else {}
        if PIXELS in self.source:
            # A cache file contains tensors only, so the hash becomes bytes.
            named[PIXELS] = torch.tensor(list(bytes.fromhex(self.source[PIXELS])), dtype=torch.uint8)
        named |= {} if self.count is None else {"count": torch.tensor(self.count)}
        return {name: value.cpu().contiguous() for name, value in named.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], source: dict[str, Any]) -> "ReferenceImages":
        """Build the statistics from the content of a cache file.

        Args:
            tensors: result of `tensors`.
            source: origin of the images; the cached hash of the pixels is added.
        """
        if PIXELS in tensors:
            source = source | {PIXELS: bytes(tensors[PIXELS].tolist()).hex()}
        outputs = [name.removeprefix("mean.") for name in tensors if name.startswith("mean.")]
        gaussians = {name: tuple(tensors[f"{part}.{name}"] for part in _PARTS) for name in outputs}
        probe = (tensors["probe_weight"], tensors["probe_bias"]) if "probe_bias" in tensors else None
        count = int(tensors["count"]) if "count" in tensors else None
        return cls(gaussians, tensors.get("rows"), probe, source, count)


def chosen_rows(num_images: int, limit: int, purpose: str = "neighbour_row") -> Tensor:
    """Choose the images of smallest hash by index, bool (num_images,).

    Args:
        num_images: in the set.
        limit: largest number of chosen images.
        purpose: name of the random stream.
    """
    chosen = torch.zeros(num_images, dtype=torch.bool)
    chosen[hash_int64(purpose, torch.arange(num_images)).argsort()[:limit]] = True
    return chosen


class ReferenceImagesBuilder:
    """Accumulates statistics of reference images over batches and ranks.

    Args:
        network: loaded feature network.
        num_images: total over all ranks.
        num_classes: labels are 0..num_classes-1; 0 = no labels, no probe.
        gaussian: False skips the sums, where published statistics replace them.
        neighbours: largest number of images whose features are kept.

    Raises:
        UserError: fewer than two images.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        num_images: int,
        num_classes: int = 0,
        gaussian: bool = True,
        neighbours: int = NEIGHBOUR_IMAGES,
    ) -> None:
        if num_images < 2:
            raise UserError(f"reference statistics need at least two images; the data gave {num_images}")
        self.network, self.num_images, self.num_classes = network, num_images, num_classes
        sizes = {name: size for name, size in network.output_sizes().items() if name in (FEATURES, SPATIAL)}
        device = network.device
        self.sums = {name: FrechetDistance(network, size).to(device) for name, size in sizes.items() if gaussian}
        self.kept = chosen_rows(num_images, neighbours)
        self.rows = SampleFeatures(network.num_features).to(device)
        self.probed = chosen_rows(num_images, PROBE_IMAGES, "probe_row") if num_classes else None
        self.probe_rows = SampleFeatures(network.num_features + 1).to(device)

    def add(self, images: Tensor, labels: Tensor | None, indices: Tensor) -> None:
        """Add a batch.

        Args:
            images: uint8 (B, 3, H, W), B may be 0.
            labels: (B,), or None without a probe.
            indices: (B,) of the images in the set, on the CPU.
        """
        outputs = self.network.outputs(images.to(self.network.device))
        for name, sums in self.sums.items():
            sums.update_features(outputs[name], real=True)
        features = outputs[FEATURES]
        kept = self.kept[indices].nonzero()[:, 0]
        self.rows.update(features[kept.to(features.device, non_blocking=True)], indices[kept])
        if self.probed is not None:
            chosen = self.probed[indices].nonzero()[:, 0]
            rows = features[chosen.to(features.device, non_blocking=True)]
            # The label is one more column, so that it is gathered and sorted together with its features.
            column = labels[chosen].to(features.device, features.dtype, non_blocking=True)[:, None]
            self.probe_rows.update(torch.cat((rows, column), 1), indices[chosen])

    def finish(self, source: dict[str, Any], gaussians: dict | None = None) -> ReferenceImages:
        """Return the statistics over all ranks, equal on each; a collective.

        Args:
            source: origin of the images.
            gaussians: published statistics that replace the computed ones.
        """
        computed = {}
        for name, sums in self.sums.items():
            state = sums.reference_state()
            pair = mean_and_covariance(state["sum"], state["outer_sum"], state["count"])
            computed[name] = tuple(value.cpu() for value in pair)
        # A second collective: every rank gets all rows.
        features = self.rows.compute().cpu()
        count = None if gaussians else self.num_images
        return ReferenceImages(gaussians or computed, features, self._probe(), source, count)

    def _probe(self) -> tuple[Tensor, Tensor] | None:
        if self.probed is None:
            return None
        rows = self.probe_rows.compute()
        probe = LinearProbe().fit(rows[:, :-1], rows[:, -1].round().long(), self.num_classes)
        return probe.weight.cpu(), probe.bias.cpu()


def cache_values(network: FeatureNetwork, fingerprint: Any, num_classes: int, options: Sequence[Any] = ()) -> list:
    """Return everything that a cache file of `ReferenceImages` depends on."""
    return [FORMAT, "real", fingerprint, network.protocol(), num_classes, NEIGHBOUR_IMAGES, *options]


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
        lacking = f"no images (arr_0) for {network.metric_name}; give another reference"
        raise UserError(f"{file.path} holds statistics of the published Inception only, and {lacking}")
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
