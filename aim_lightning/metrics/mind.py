"""MIND (arXiv 2605.06797): the sliced Wasserstein distance between the features of two sets of images."""

from typing import Any

import torch
from torch import Tensor

from aim_lightning.metrics.feature_sets import SampleFeatures

BLOCK = 100  # directions per matrix product: 80 MB for 50,000 images on two sides


class MongeInceptionDistance(SampleFeatures):
    """3 F times the mean squared difference of sorted projections, over random directions.

    A direction is a unit vector of the F features. Sorting both sets of projections pairs them as optimal transport
    does, so that the mean is the squared Wasserstein distance in one dimension. The factor 3 F gives values of the size
    of FIDs. Both sides need the same number of images, so the larger one is reduced to a random subset.

    Directions, subsets and default numbers are those of torch-fidelity's `metric_mind.py`, which computes in float32;
    here products and sums are float64. Each rank adds its own images with their indices.

    Args:
        reference: features (M, F) of reference images.
        projections: number of directions.
        seed: of the subsets and directions.
        kwargs: options of torchmetrics' `Metric`.
    """

    higher_is_better = False

    def __init__(self, reference: Tensor, projections: int = 1000, seed: int = 2020, **kwargs) -> None:
        super().__init__(reference.shape[1], **kwargs)
        self.reference, self.projections, self.seed = reference, projections, seed

    def protocol(self, samples: int) -> dict[str, Any]:
        """Return the plain values that determine the result.

        Args:
            samples: number of generated images.
        """
        size = min(samples, len(self.reference))
        values = {"projections": self.projections, "seed": self.seed, "scale": f"3 x {self.num_features}"}
        return {**values, "images_per_side": size, "reference_images": len(self.reference)}

    def compute(self) -> Tensor:
        """Return the distance of the images of all ranks, a float64 scalar of 0 or more.

        Raises:
            ValueError: two images with the same index.
        """
        features = super().compute()
        size = min(len(features), len(self.reference))
        # On the CPU, since generators of other devices give other numbers; in torch-fidelity's order of calls.
        generator = torch.Generator().manual_seed(self.seed)
        sides = [_subset(side, size, generator).to(features.device).double() for side in (features, self.reference)]
        directions = torch.randn(self.projections, self.num_features, generator=generator)
        directions = torch.nn.functional.normalize(directions, dim=1).to(features.device).double()
        total = torch.zeros((), dtype=torch.float64, device=features.device)
        for block in directions.split(BLOCK):
            sorted_x, sorted_y = ((side @ block.T).sort(dim=0).values for side in sides)
            total += (sorted_x - sorted_y).square().mean(0).sum()
        return 3 * self.num_features * total / self.projections


def _subset(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    if len(features) == size:
        return features
    return features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]
