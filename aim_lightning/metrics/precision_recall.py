"""Precision and recall by nearest neighbours (arXiv 1904.06991), with the numbers of ADM's evaluator."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from aim_lightning.metrics.sample_features import SampleFeatures

NEIGHBOUR = 3  # as in ADM's protocol
ROWS = 2048  # distances of so many images at once: 0.8 GB against 50,000 others
SAME = 1e-10  # of the sum of both squared norms: rounding, so that equal images are at distance 0


class PrecisionRecall(SampleFeatures):
    """Share of the samples inside the real manifold, and of the real images inside the samples' one.

    A manifold is the union of balls around its images, each reaching to its k-th nearest neighbour. ADM's evaluator
    does the same on k = 3, Inception's 2,048 features, 10,000 real images and all samples, with distances in float16
    where they do not overflow; ours are float64. Each process feeds its own images with their numbers.

    Args:
        reference: features (M, F) of real images.
        k: neighbour that gives the radius; the image itself does not count.
        memo: where the radii of the real images are kept for others that compare with the same ones.
        kwargs: torchmetrics' own.
    """

    higher_is_better = True

    def __init__(self, reference: Tensor, k: int = NEIGHBOUR, memo: dict[str, Tensor] | None = None, **kwargs) -> None:
        super().__init__(reference.shape[1], **kwargs)
        self.reference, self.k, self.memo = reference, k, {} if memo is None else memo

    def protocol(self) -> dict[str, Any]:
        """Plain values that fix the result."""
        distances = "squared Euclidean, float64"
        return {"k": self.k, "reference_pictures": len(self.reference), "distances": distances}

    def compute(self) -> dict[str, Tensor]:
        """{"precision", "recall"}, float64 scalars from 0 to 1, over the images of all processes.

        Raises:
            ValueError: no more than k images on either side, or an image that came twice.
        """
        features = self.in_order()
        if min(len(features), len(self.reference)) <= self.k:
            raise ValueError(f"PrecisionRecall needs more than {self.k} images on either side")
        samples, real = features.double(), self.reference.to(features.device).double()
        return {
            "precision": _share_inside(samples, real, self._real_radii(real)),
            "recall": _share_inside(real, samples, radii(samples, self.k)),
        }

    def _real_radii(self, real: Tensor) -> Tensor:
        name = f"radii_{self.k}"
        if name not in self.memo:
            self.memo[name] = radii(real, self.k).cpu()
        return self.memo[name].to(real.device)


def radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row of x (N, F) float64 to its k-th nearest other row, (N,)."""
    parts = [block.topk(k + 1, dim=1, largest=False).values[:, -1] for block in _distances(x, x)]
    return torch.cat(parts)


def _share_inside(x: Tensor, centres: Tensor, reach: Tensor) -> Tensor:
    inside = [(block <= reach).any(1) for block in _distances(x, centres)]
    return torch.cat(inside).double().mean()


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Squared distances between rows, some rows of x at a time: (rows, len(y)), 0 for equal ones."""
    norms = y.square().sum(1)
    for part in x.split(ROWS):
        scale = part.square().sum(1)[:, None] + norms
        squared = torch.addmm(scale, part, y.T, alpha=-2)
        yield squared.masked_fill_(squared < SAME * scale, 0.0)
