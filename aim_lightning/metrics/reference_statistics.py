"""Everything that scores need to know of the real images: gaussians, features to compare with, a probe."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aim_lightning.metrics.features import FEATURES, SPATIAL, FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.metrics.gaussian import mean_and_covariance
from aim_lightning.metrics.probe import LinearProbe
from aim_lightning.metrics.sample_features import SampleFeatures
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.random import hash_int64

FORMAT = 2  # raise it when the same inputs give other values
NEIGHBOUR_IMAGES = 10_000  # real images for precision, recall and kernel distances, as in ADM's reference files
PROBE_IMAGES = 50_000
PIXELS = "pixels_sha256"  # in `source`: known once the images were read, so that it is kept with the statistics


@dataclass(frozen=True)
class ReferenceImages:
    """Statistics of the real images, on the CPU.

    Args:
        gaussians: output of the network -> mean (F,) and covariance (F, F), float64.
        features: (M, F) float32 of single images; None where only statistics are known.
        probe: weight (C, F) and bias (C,) of a `LinearProbe`; None without labels.
        source: where they come from, plain values for the protocol.
        count: images that the gaussians are of; None for published ones, which do not tell.
        memo: what is worked out from them once, such as the radii of their manifold.
    """

    gaussians: dict[str, tuple[Tensor, Tensor]]
    features: Tensor | None
    probe: tuple[Tensor, Tensor] | None
    source: dict[str, Any] = field(default_factory=dict)
    count: int | None = None
    memo: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """For a cache file; inverse of `from_tensors`."""
        named = {
            f"{part}.{name}": value
            for name, pair in self.gaussians.items()
            for part, value in zip(_PARTS, pair, strict=True)
        }
        named |= {"rows": self.features} if self.features is not None else {}
        named |= {"probe_weight": self.probe[0], "probe_bias": self.probe[1]} if self.probe else {}
        if PIXELS in self.source:
            named[PIXELS] = torch.tensor(list(bytes.fromhex(self.source[PIXELS])), dtype=torch.uint8)
        named |= {} if self.count is None else {"count": torch.tensor(self.count)}
        return {name: value.cpu().contiguous() for name, value in named.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], source: dict[str, Any]) -> "ReferenceImages":
        """Back from `tensors`; `source` gets the hash of the pixels that they hold."""
        if PIXELS in tensors:
            source = source | {PIXELS: bytes(tensors[PIXELS].tolist()).hex()}
        outputs = [name.removeprefix("mean.") for name in tensors if name.startswith("mean.")]
        gaussians = {name: tuple(tensors[f"{part}.{name}"] for part in _PARTS) for name in outputs}
        probe = (tensors["probe_weight"], tensors["probe_bias"]) if "probe_bias" in tensors else None
        count = int(tensors["count"]) if "count" in tensors else None
        return cls(gaussians, tensors.get("rows"), probe, source, count)


_PARTS = ("mean", "covariance")


def chosen_rows(num_images: int, limit: int, purpose: str = "neighbour_row") -> Tensor:
    """Which images are kept one by one: those of smallest hash, by their number; bool (num_images,)."""
    numbers = torch.arange(num_images)
    kept = torch.zeros(num_images, dtype=torch.bool)
    kept[hash_int64(purpose, numbers).argsort()[:limit]] = True
    return kept


class ReferenceImagesBuilder:
    """Takes in real images, each process its own, and adds them up over all processes.

    Args:
        network: loaded.
        num_images: of all processes together.
        num_classes: labels are 0..num_classes-1; 0 = no labels, no probe.
        gaussian: False leaves the sums out, where published statistics take their place.
        neighbours: at most so many images are kept one by one.
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
        """uint8 (B, 3, H, W), labels (B,) and the images' numbers (B,); B may be 0."""
        outputs = self.network.outputs(images.to(self.network.device))
        for name, sums in self.sums.items():
            sums.update_features(outputs[name], real=True)
        features = outputs[FEATURES]
        kept = self.kept[indices].nonzero()[:, 0]
        self.rows.update(features[kept.to(features.device, non_blocking=True)], indices[kept])
        if self.probed is not None:
            chosen = self.probed[indices].nonzero()[:, 0]
            place = chosen.to(features.device, non_blocking=True)
            own = labels[chosen].to(features.device, features.dtype, non_blocking=True)
            self.probe_rows.update(torch.cat((features[place], own[:, None]), 1), indices[chosen])

    def finish(self, source: dict[str, Any], gaussians: dict | None = None) -> ReferenceImages:
        """Over all processes, every one of which must call it; the same on all."""
        own = {}
        for name, sums in self.sums.items():
            state = sums.reference_state()
            own[name] = tuple(v.cpu() for v in mean_and_covariance(state["sum"], state["outer_sum"], state["count"]))
        features = self.rows.compute().cpu()
        return ReferenceImages(
            gaussians or own, features, self._probe(), source, None if gaussians else self.num_images
        )

    def _probe(self) -> tuple[Tensor, Tensor] | None:
        if self.probed is None:
            return None
        rows = self.probe_rows.compute()
        probe = LinearProbe().fit(rows[:, :-1], rows[:, -1].round().long(), self.num_classes)
        return probe.weight.cpu(), probe.bias.cpu()


def cache_values(network: FeatureNetwork, fingerprint: Any, num_classes: int, options: Sequence[Any] = ()) -> list:
    """What a cache file of `ReferenceImages` is named after."""
    return [FORMAT, "real", fingerprint, network.protocol(), num_classes, NEIGHBOUR_IMAGES, *options]
