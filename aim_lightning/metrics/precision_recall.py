"""Precision and recall by nearest neighbours (arXiv 1904.06991), with the parameters of ADM's evaluator."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aim_lightning.metrics.sample_features import SampleFeatures

NEIGHBOUR = 3  # as in ADM's protocol
ROWS = 2048  # images per block of distances: 0.8 GB against 50,000 others
SAME = 1e-10  # relative to the sum of both squared norms: below it, a distance is rounding of 0


class PrecisionRecall(SampleFeatures):
    """Share of the samples inside the reference manifold, and of the reference images inside the samples' manifold.

    A manifold is the union of balls around its images, each reaching to its k-th nearest neighbour. ADM's evaluator
    uses k = 3, Inception's 2,048 features, 10,000 reference images and all samples, with distances in float16 where
    they do not overflow; here they are float64. Each rank adds its own images with their indices.

    Args:
        reference: features (M, F) of reference images.
        k: neighbour that determines the radius; the image itself does not count.
        memo: cache for the radii of the reference images, shared by metrics with the same reference.
        kwargs: options of torchmetrics' `Metric`.
    """

    higher_is_better = True

    def __init__(self, reference: Tensor, k: int = NEIGHBOUR, memo: dict[str, Tensor] | None = None, **kwargs) -> None:
        super().__init__(reference.shape[1], **kwargs)
        self.reference, self.k, self.memo = reference, k, {} if memo is None else memo

    def protocol(self) -> dict[str, Any]:
        """Return the plain values that determine the result."""
        distances = "squared Euclidean, float64"
        return {"k": self.k, "reference_pictures": len(self.reference), "distances": distances}

    def compute(self) -> dict[str, Tensor]:
        """Return "precision" and "recall", float64 scalars from 0 to 1, over the images of all ranks.

        Raises:
            ValueError: no more than k images on either side, or two images with the same index.
        """
        features = self.in_order()
        if min(len(features), len(self.reference)) <= self.k:
            raise ValueError(f"PrecisionRecall needs more than {self.k} images on either side")
        samples, real = features.double(), self.reference.to(features.device).double()
        precision = _share_inside(samples, real, self._reference_radii(real))
        return {"precision": precision, "recall": _share_inside(real, samples, radii(samples, self.k))}

    def _reference_radii(self, real: Tensor) -> Tensor:
        name = f"radii_{self.k}"
        if name not in self.memo:
            self.memo[name] = radii(real, self.k).cpu()
        return self.memo[name].to(real.device)


def radii(x: Tensor, k: int) -> Tensor:
    """Return the squared distance of each row to its k-th nearest other row, (N,).

    Args:
        x: features (N, F), float64.
        k: 1 or more; the row itself, at distance 0, is left out.
    """
    parts = [block.topk(k + 1, dim=1, largest=False).values[:, -1] for block in _distances(x, x)]
    return torch.cat(parts)


def _share_inside(x: Tensor, centres: Tensor, reach: Tensor) -> Tensor:
    inside = [(block <= reach).any(1) for block in _distances(x, centres)]
    return torch.cat(inside).double().mean()


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield blocks (rows, len(y)) of the squared distances between rows, exactly 0 for equal rows."""
    norms = y.square().sum(1)
    for part in x.split(ROWS):
        scale = part.square().sum(1)[:, None] + norms
        squared = torch.addmm(scale, part, y.T, alpha=-2)
        # |x|^2 + |y|^2 - 2xy cancels to rounding noise for equal rows, which would put them outside a radius of 0.
        yield squared.masked_fill_(squared < SAME * scale, 0.0)
