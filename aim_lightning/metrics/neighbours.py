"""Precision and recall by nearest neighbours (arXiv 1904.06991), with the numbers of ADM's evaluator."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 2048  # distances of so many pictures at once: 0.8 GB against 50,000 others
SAME = 1e-10  # of the sum of both squared norms: rounding, so that equal pictures are at distance 0


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of the samples inside the real manifold, and of the real pictures inside the samples' one.

    A manifold is the union of balls around its pictures, each reaching to its k-th nearest neighbour. ADM's evaluator
    does the same on k = 3, Inception's 2,048 features, 10,000 real pictures and all samples, with distances in float16
    where they do not overflow; ours are float64.

    Args:
        k: neighbour that gives the radius; the picture itself does not count.
    """

    k: int = 3

    def protocol(self, samples: int, reference: int) -> dict[str, Any]:
        """Plain values that fix the result for sets of these sizes."""
        return {**asdict(self), "reference_pictures": reference, "distances": "squared Euclidean, float64"}

    def __call__(self, features: Tensor, reference: Tensor, radii: Tensor | None = None) -> dict[str, float]:
        """{"precision", "recall"}, 0 to 1, for features (N, F) of samples and (M, F) of real pictures.

        Args:
            features: of samples.
            reference: of real pictures.
            radii: `radii(reference)` where it is known.

        Raises:
            ValueError: no more than k pictures on either side.
        """
        if min(len(features), len(reference)) <= self.k:
            raise ValueError(f"PrecisionRecall needs more than {self.k} pictures on either side")
        samples, real = features.double(), reference.double()
        return {
            "precision": _share_inside(samples, real, self.radii(real) if radii is None else radii),
            "recall": _share_inside(real, samples, self.radii(samples)),
        }

    def radii(self, x: Tensor) -> Tensor:
        """Squared distance of each row to its k-th nearest other row, (N,) float64."""
        x = x.double()
        parts = [block.topk(self.k + 1, dim=1, largest=False).values[:, -1] for block in _distances(x, x)]
        return torch.cat(parts)


def _share_inside(x: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(block <= radii).any(1) for block in _distances(x, centres)]
    return float(torch.cat(inside).double().mean())


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Squared distances between rows, some rows of x at a time: (rows, len(y)), 0 for equal ones."""
    norms = y.square().sum(1)
    for part in x.split(ROWS):
        scale = part.square().sum(1)[:, None] + norms
        squared = torch.addmm(scale, part, y.T, alpha=-2)
        yield squared.masked_fill_(squared < SAME * scale, 0.0)
