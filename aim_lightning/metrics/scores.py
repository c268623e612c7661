"""All metrics of a set of images from one pass of the feature network."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from aim_lightning.metrics.fdr import FrechetRatio
from aim_lightning.metrics.feature_sets import NEIGHBOUR, KernelDistance, NeighbourMetrics
from aim_lightning.metrics.features import FEATURES, LOGITS, FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.metrics.inception_score import InceptionScore
from aim_lightning.metrics.mind import MongeInceptionDistance
from aim_lightning.metrics.probe import SETTINGS, ClassAgreement
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.utils.errors import UserError


def least_images(compare: bool) -> int:
    """Return the smallest number of images on either side.

    Args:
        compare: True with the metrics of single images' features.
    """
    return NEIGHBOUR + 1 if compare else 2


class Scores(nn.Module):
    """All metrics that network and reference allow.

    Fréchet distances always; on Inception also sFID and Inception Score; with features of single reference images also
    kernel distance, MIND, precision, recall, density and coverage; with labels also class agreement. Each rank adds its
    own images with their indices in the set; `compute` combines all ranks.

    Args:
        network: loaded feature network.
        real: statistics of the reference images.
        num_images: in the set.
        splitting: of the Inception Score.
        compare: False skips the metrics on features of single images and saves their memory and time.
        heldout: statistics of held-out real images; with them also FDr.

    Raises:
        UserError: too few images on either side.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        real: ReferenceImages,
        num_images: int,
        splitting: str = "adm",
        compare: bool = True,
        heldout: ReferenceImages | None = None,
    ) -> None:
        super().__init__()
        self.real, self.num_images, self.splitting = real, num_images, splitting
        self.__dict__["network"] = network  # not a submodule: shared and frozen
        sizes = network.output_sizes()
        self.distances = nn.ModuleDict()
        for output, (mean, covariance) in real.gaussians.items():
            self.distances[output] = FrechetDistance(sizes[output])
            self.distances[output].load_gaussian(mean, covariance, real.count)
        self.inception = InceptionScore(num_images, splitting, sizes[LOGITS]) if LOGITS in sizes else None
        compare = compare and real.features is not None
        least = least_images(compare)
        sides = {"to be scored": num_images} | ({"in the reference": len(real.features)} if compare else {})
        for role, count in sides.items():
            if count < least:
                raise UserError(f"there are {count} images {role}; these metrics need {least} or more")
        self.kernel = KernelDistance(real.features) if compare else None
        self.neighbours = NeighbourMetrics(real.features, memo=real.memo) if compare else None
        self.mind = MongeInceptionDistance(real.features) if compare else None
        self.agreement = ClassAgreement(*real.probe) if real.probe else None
        self.ratio = FrechetRatio(network, self.distances[FEATURES], heldout, num_images) if heldout else None
        # The states of all metrics follow the network, which computes the features.
        self.to(network.device)

    def update(self, images: Tensor, indices: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch of images.

        Args:
            images: uint8 (B, 3, H, W), B may be 0.
            indices: (B,) of the images in the set.
            labels: (B,) requested classes.

        Raises:
            ValueError: anything but uint8 images.
        """
        outputs = self.network.outputs(images.to(self.network.device))
        for output, distance in self.distances.items():
            distance.update_features(outputs[output], real=False)
        if self.inception is not None:
            self.inception.update(outputs[LOGITS], indices)
        for metric in (self.kernel, self.neighbours, self.mind):  # all store the same tensors, without a copy
            if metric is not None:
                metric.update(outputs[FEATURES], indices)
        if self.agreement is not None:
            # Without labels an empty update: torchmetrics warns when a metric without any is computed.
            labels = torch.zeros(0, dtype=torch.int64) if labels is None else labels
            labels = labels.to(self.network.device, non_blocking=True)
            self.agreement.update(outputs[FEATURES][: len(labels)], labels)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """Return every value by its name without the number of images; a collective.

        Raises:
            UserError: features that are not finite, on all ranks.
        """
        named = {}
        for metric, names in self._named_metrics():
            result = metric.compute()
            values = result.values() if isinstance(result, dict) else [result]
            # Not strict: only the published kernel distance reports its deviation.
            named |= dict(zip(names, map(float, values), strict=False))
        if self.ratio is not None:
            named[self.ratio.name] = named[self.network.metric_name] / self.ratio.divisor
        # NaN without labels.
        return {name: value for name, value in named.items() if name != "class_agreement" or not math.isnan(value)}

    def names(self) -> list[str]:
        """Return the names of the values; class agreement is dropped without labels."""
        names = [name for _, names in self._named_metrics() for name in names]
        return names + ([] if self.ratio is None else [self.ratio.name])

    def reset(self) -> None:
        """Remove the added images and keep the reference.

        Use one object repeatedly: torchmetrics' objects contain reference cycles, so that the memory of an unused one
        stays allocated until Python's garbage collector runs.
        """
        for metric, _ in self._named_metrics():
            metric.reset()

    def protocol(self, num_images: int | None = None) -> dict[str, Any]:
        """Return the plain values that determine every number, except for the images themselves.

        Args:
            num_images: scored images, where the scoring ended early.
        """
        count = num_images or self.num_images
        values = {"features": self.network.protocol(), "reference": self.real.source, "num_images": count}
        if self.inception is not None:
            values["inception_score"] = {"splitting": self.splitting, "classes": 1008}
        if self.kernel is not None:
            values["kernel_distance"] = self.kernel.protocol(count)
            values["neighbours"] = self.neighbours.protocol()
            values["mind"] = self.mind.protocol(count)
        if self.ratio is not None:
            values["fdr"] = self.ratio.protocol()
        return values | ({"class_agreement": SETTINGS} if self.agreement is not None else {})

    def _named_metrics(self) -> Iterator[tuple[Metric, list[str]]]:
        """Yield the metrics in the order of their collectives, with the names of their values.

        Features other than those of the published Inception are part of the name, so that no value is mistaken for
        that of a paper.
        """
        ending, distance = self.network.name_ending, self.network.metric_name
        for output, metric in self.distances.items():
            yield metric, [distance if output == FEATURES else f"s{distance}"]
        if self.inception is not None:
            yield self.inception, [f"is{ending}", f"is_std{ending}"]
        if self.kernel is not None:
            yield self.kernel, [f"kd{ending}"] if ending else ["kid", "kid_std"]
            yield self.neighbours, [f"{name}{ending}" for name in ("precision", "recall", "density", "coverage")]
            yield self.mind, [f"mind{ending or '_inception'}"]
        if self.agreement is not None:
            yield self.agreement, ["class_agreement"]
