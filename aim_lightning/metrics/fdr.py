"""FDr (arXiv 2604.28190): Fréchet distances of samples relative to those of held-out real images."""

from functools import cached_property
from statistics import fmean
from typing import Any

from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.utils.errors import UserError

SAME = 1e-6  # relative to the variance of the features: below it, a distance is rounding of 0


class FrechetRatio:
    """Divide the Fréchet distance of samples by that of as many held-out real images.

    FDr = FD(samples, reference) / FD(held-out, reference) on the features of one network, so that held-out images have
    the value 1. Distances of different networks differ in scale; their ratios can be averaged (`mean_of_ratios`). The
    published protocol takes 50,000 samples, ImageNet's training images as the reference and its 50,000 validation
    images as the held-out set. Here both sides have `count` images, because the bias of the distance depends on it.

    The definition is taken from the abstract and summaries of arXiv 2604.28190 and from a third-party implementation,
    `compute_fdr6` in fdr6_utils.py of Sphere2. The text of the paper and its own code were not available.

    Args:
        network: feature network of both sides.
        distance: with the statistics of the reference images.
        heldout: statistics of the held-out images; of more than `count` images those of smallest hash are used.
        count: number of samples.

    Raises:
        UserError: `heldout` has fewer than `count` images, or too few of them are stored.
    """

    def __init__(
        self, network: FeatureNetwork, distance: FrechetDistance, heldout: ReferenceImages, count: int
    ) -> None:
        self.network, self.distance, self.heldout, self.count = network, distance, heldout, count
        self.gaussian = heldout.gaussian_of(count)

    @property
    def name(self) -> str:
        """Return the metric's name without the number of images, such as "fdr_inception"."""
        return f"fdr_{network_label(self.network)}"

    def protocol(self) -> dict[str, Any]:
        """Return the plain values that determine the divisor."""
        return {"heldout": self.heldout.source, "num_heldout": self.count}

    @cached_property
    def divisor(self) -> float:
        """Return the distance between the held-out and the reference images.

        Raises:
            UserError: the distance is 0 up to rounding.
        """
        mean, covariance = self.gaussian
        distance = float(self.distance.distance_from_reference(mean, covariance))
        # The root of the covariances amplifies rounding: equal sets have distances up to 1e-8 of the variance.
        if distance <= SAME * float(covariance.trace()):
            raise UserError("FDr: the held-out images have no distance to the reference; give images outside of it")
        return distance


def network_label(network: FeatureNetwork) -> str:
    """Return the part of metric names that identifies a network: "inception" where the names have none."""
    return network.name_ending.removeprefix("_") or "inception"


def mean_of_ratios(values: dict[str, float]) -> dict[str, float]:
    """Return FDr^K: the arithmetic mean over K networks, by its name; empty for fewer than two networks.

    Args:
        values: metrics by name; the ratios start with "fdr_".
    """
    ratios = {name.removeprefix("fdr_"): value for name, value in values.items() if name.startswith("fdr_")}
    return {f"fdr_{'+'.join(sorted(ratios))}": fmean(ratios.values())} if len(ratios) > 1 else {}
