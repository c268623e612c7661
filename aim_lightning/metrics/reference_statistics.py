"""Statistics of the reference images: gaussians (computed, or those of ADM's files), features and a linear probe."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_lightning.metrics.feature_sets import SampleFeatures
from aim_lightning.metrics.features import FEATURES, SPATIAL, FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance, mean_and_covariance
from aim_lightning.metrics.probe import fit_probe
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.npz import NpzFile
from aim_lightning.utils.random import hash_int64

Gaussians = dict[str, tuple[Tensor, Tensor]]  # output of the network -> mean (F,) and covariance (F, F), float64
NEIGHBOUR_IMAGES = 10_000  # kept for neighbours, kernel distances and MIND, as in ADM's reference files
PROBE_IMAGES = 50_000
_PARTS, _PROBE = ("mean", "covariance"), ("probe_weight", "probe_bias")
# ADM's reference files, VIRTUAL_imagenet256_labeled.npz and similar (github.com/openai/guided-diffusion):
# output of the network -> names of mean and covariance in the file.
STATISTICS = {FEATURES: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
IMAGES = "arr_0"
PUBLISHED = "fid"  # metric name of the published Inception's weights only


@dataclass(frozen=True)
class ReferenceImages:
    """Statistics of the reference images, on the CPU.

    Args:
        gaussians: by output of the network.
        features: (M, F) float32 of single images; None for published statistics.
        probe: weight (C, F) and bias (C,) of `fit_probe`; None without labels.
        source: origin of the images, plain values for the protocol.
        count: number of images behind the gaussians; None for published ones, which do not contain it.
        memo: cache of values computed from the statistics, such as the radii of their manifold.
    """

    gaussians: Gaussians
    features: Tensor | None
    probe: tuple[Tensor, Tensor] | None
    source: dict[str, Any] = field(default_factory=dict)
    count: int | None = None
    memo: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def gaussian_of(self, count: int) -> tuple[Tensor, Tensor]:
        """Return mean (F,) and covariance (F, F) of the features of `count` images, float64.

        All images, or those of smallest hash among the stored features.

        Raises:
            UserError: there are fewer images, or fewer stored features.
        """
        if count == self.count:
            return self.gaussians[FEATURES]
        limit = 0 if self.count is None or self.features is None else len(self.features)
        if count > limit:
            total = f"{limit} of {self.count} images" if self.count else "published statistics without their images"
            raise UserError(f"FDr needs {count} held-out images; there are {total}; give others to --fdr")
        stored = chosen_rows(self.count, limit)
        rows = self.features[chosen_rows(self.count, count)[stored]].double()
        return rows.mean(0), rows.T.cov()

    def tensors(self) -> dict[str, Tensor]:
        """Return the content of a cache file; inverse of `from_tensors`."""
        pairs = self.gaussians.items()
        named = {f"{part}.{name}": x for name, pair in pairs for part, x in zip(_PARTS, pair, strict=True)}
        named |= {"rows": self.features, "count": None if self.count is None else torch.tensor(self.count)}
        named |= dict(zip(_PROBE, self.probe or (None, None), strict=True))
        return {name: value.cpu().contiguous() for name, value in named.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], source: dict[str, Any]) -> "ReferenceImages":
        """Build the statistics from the content of a cache file.

        Args:
            tensors: result of `tensors`.
            source: origin of the images.
        """
        outputs = [name.removeprefix("mean.") for name in tensors if name.startswith("mean.")]
        gaussians = {name: tuple(tensors[f"{part}.{name}"] for part in _PARTS) for name in outputs}
        probe = tuple(tensors[name] for name in _PROBE) if _PROBE[0] in tensors else None
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
    """Accumulate statistics of reference images over batches and ranks.

    Args:
        network: loaded feature network.
        num_images: total over all ranks.
        num_classes: labels are 0..num_classes-1; 0 = no labels, no probe.
        gaussians: published statistics that replace the computed ones.

    Raises:
        UserError: fewer than two images.
    """

    def __init__(
        self, network: FeatureNetwork, num_images: int, num_classes: int = 0, gaussians: Gaussians | None = None
    ) -> None:
        if num_images < 2:
            raise UserError(f"reference statistics need at least two images; the data gave {num_images}")
        self.network, self.num_images, self.num_classes, self.gaussians = network, num_images, num_classes, gaussians
        sizes = {name: size for name, size in network.output_sizes().items() if name in (FEATURES, SPATIAL)}
        device = network.device
        self.sums = {name: FrechetDistance(size).to(device) for name, size in sizes.items() if not gaussians}
        self.kept = chosen_rows(num_images, NEIGHBOUR_IMAGES)
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

    def finish(self, source: dict[str, Any]) -> ReferenceImages:
        """Return the statistics over all ranks, equal on each; a collective.

        Args:
            source: origin of the images.
        """
        computed = {}
        for name, sums in self.sums.items():
            computed[name] = tuple(value.cpu() for value in mean_and_covariance(*sums.reference_sums()))
        # A second collective: every rank gets all rows.
        features = self.rows.compute().cpu()
        probe, count = None, None if self.gaussians else self.num_images
        if self.probed is not None:
            rows = self.probe_rows.compute()  # a third collective
            fitted = fit_probe(rows[:, :-1], rows[:, -1].round().long(), self.num_classes)
            probe = tuple(value.cpu() for value in fitted)
        return ReferenceImages(self.gaussians or computed, features, probe, source, count)


def adm_gaussians(file: NpzFile, network: FeatureNetwork) -> Gaussians:
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
