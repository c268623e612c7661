"""Metrics of the features of single images: kernel distance, nearest neighbours, and their base classes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image.kid import poly_mmd
from torchmetrics.utilities import dim_zero_cat

from aim_lightning.utils.errors import UserError

NEIGHBOUR = 3  # as in ADM's protocol
ROWS = 2048  # images per block of distances: 0.8 GB against 50,000 others
SAME = 1e-10  # relative to the sum of both squared norms: below it, a distance is rounding of 0


class FiniteValues:
    """Mixin of torchmetrics' `Metric` that records values that are not finite and raises in `compute`.

    The record stays on the device, since reading it in each update would synchronize a GPU. It is summed over ranks
    like any state, so that all ranks raise together instead of waiting for one that has failed.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.add_state("not_finite", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def record_finite(self, values: Tensor) -> None:
        """Count an update with NaN or infinity; call it in `update`."""
        self.not_finite += (~values.isfinite()).any()

    def check_finite(self) -> None:
        """Check the counter; call it in `compute`.

        Raises:
            UserError: a value was NaN or infinite.
        """
        if self.not_finite:
            cause = "the feature network's weights are damaged or belong to another network; download them again"
            raise UserError(f"{type(self).__name__} was given features that are not finite (NaN): {cause}")


class SampleFeatures(FiniteValues, Metric):
    """Gather features from all ranks and sort them by the index of the image.

    Results then depend neither on the number of ranks nor on the batch size, since the order decides which images a
    random subset contains. Memory: 4 bytes per value, 400 MB for 50,000 images of 2,048 features.

    Args:
        num_features: values per image.
        kwargs: options of torchmetrics' `Metric`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, num_features: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("indices", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, indices: Tensor) -> None:
        """Add the features of a batch.

        Args:
            features: (B, F), B may be 0.
            indices: (B,) of the images in the set.
        """
        self.record_finite(features)
        self.features.append(features.detach().float())
        self.indices.append(indices.to(features.device, non_blocking=True))  # a wait would stop the GPU

    def sync(self, *args, **kwargs) -> None:
        """Add an empty batch where a rank has none, then gather.

        torchmetrics skips the gathering on a rank with an empty list state; the other ranks would wait for it.
        """
        if isinstance(self.features, list) and not self.features:
            self.features.append(torch.zeros(0, self.num_features, device=self.device))
            self.indices.append(torch.zeros(0, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return the features of all ranks, float32 (N, F), sorted by index; subclasses return their metric.

        Raises:
            ValueError: two images with the same index.
            UserError: features that are not finite.
        """
        self.check_finite()
        features, indices = dim_zero_cat(self.features), dim_zero_cat(self.indices)
        # Sorted by index, since ranks and batches may come in any order.
        order = indices.argsort()
        if len(order) > 1 and not (indices[order].diff() > 0).all():
            raise ValueError("SampleFeatures was given an image twice")
        return features[order]


class KernelDistance(SampleFeatures):
    """Kernel Inception Distance (arXiv 1801.01401) with the random subsets of torch-fidelity.

    Unbiased squared MMD with the kernel (x.y / F + 1)^3: mean and standard deviation over random subsets. Each rank
    adds its images with their indices, which determine the subsets.

    Args:
        reference: features (M, F) of reference images.
        subsets: number of subsets per side.
        subset_size: images per subset; fewer where a side has fewer (see `protocol`).
        seed: of the random subsets.
        kwargs: options of torchmetrics' `Metric`.
    """

    higher_is_better = False

    def __init__(
        self, reference: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020, **kwargs
    ) -> None:
        super().__init__(reference.shape[1], **kwargs)
        # A plain attribute, not a state: the reference is equal on every rank and is never gathered.
        self.reference, self.subsets, self.subset_size, self.seed = reference, subsets, subset_size, seed

    def protocol(self, samples: int) -> dict[str, Any]:
        """Return the plain values that determine the result.

        Args:
            samples: number of generated images.
        """
        size = min(self.subset_size, samples, len(self.reference))
        values = {"subsets": self.subsets, "subset_size": size, "seed": self.seed, "kernel": "(x.y / F + 1)^3"}
        return {**values, "reference_pictures": len(self.reference)}

    def compute(self) -> dict[str, Tensor]:
        """Return "mean" and "std", float64 scalars, over the images of all ranks; values below 0 are possible.

        Raises:
            ValueError: two images with the same index.
        """
        features = super().compute()
        sides = features, self.reference.to(features.device)
        size = min(self.subset_size, *map(len, sides))
        rng = np.random.RandomState(self.seed)  # torch-fidelity's generator and order of calls
        distances = []
        for _ in range(self.subsets):
            subsets = [side[torch.from_numpy(rng.choice(len(side), size, replace=False))] for side in sides]
            distances.append(poly_mmd(*(subset.double() for subset in subsets)))
        values = torch.stack(distances)
        return {"mean": values.mean(), "std": values.std(correction=0)}


class NeighbourMetrics(SampleFeatures):
    """Precision, recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) by nearest neighbours.

    Each image has a ball that reaches to its k-th nearest neighbour of the same side.

    - precision: share of the samples inside a ball of a reference image; recall: the same with the sides exchanged
    - density: mean number of reference balls that contain a sample, divided by k; above 1 where samples are dense
    - coverage: share of the reference balls that contain a sample

    All four use one pass of distances per side. The parameters are those of ADM's evaluator: k = 3, Inception's 2,048
    features, 10,000 reference images and all samples. Its distances are float16 where they do not overflow; here they
    are float64. The published density and coverage (github.com/clovaai/generative-evaluation-prdc) use k = 5 and
    exclude the surface of a ball. Each rank adds its own images with their indices.

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
        """Return "precision", "recall", "density" and "coverage", float64 scalars, over the images of all ranks.

        Density is 0 or more, the others are from 0 to 1.

        Raises:
            ValueError: two images with the same index.
        """
        features = super().compute()
        samples, real = features.double(), self.reference.to(features.device).double()
        if (name := f"radii_{self.k}") not in self.memo:
            self.memo[name] = radii(real, self.k).cpu()
        balls, covered = _count_balls(samples, real, self.memo[name].to(real.device))
        reached, _ = _count_balls(real, samples, radii(samples, self.k))
        values = {"precision": balls > 0, "recall": reached > 0, "density": balls / self.k, "coverage": covered}
        return {name: value.double().mean() for name, value in values.items()}


def radii(x: Tensor, k: int) -> Tensor:
    """Return the squared distance of each row to its k-th nearest other row, (N,).

    Args:
        x: features (N, F), float64.
        k: 1 or more; the row itself, at distance 0, is excluded.
    """
    return torch.cat([block.topk(k + 1, dim=1, largest=False).values[:, -1] for block in _distances(x, x)])


def nearest_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance of each row of x to its nearest row of y, and that row's number, (N,) each.

    Args:
        x: features (N, F), float64.
        y: features (M, F), float64.
    """
    blocks = [block.min(1) for block in _distances(x, y)]
    return torch.cat([block.values for block in blocks]), torch.cat([block.indices for block in blocks])


def _count_balls(x: Tensor, centres: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of balls that contain each row of x, (N,), and which balls contain any, bool (M,)."""
    counts, occupied = [], torch.zeros(len(centres), dtype=torch.bool, device=x.device)
    for block in _distances(x, centres):
        inside = block <= reach
        counts.append(inside.sum(1))
        occupied |= inside.any(0)
    return torch.cat(counts), occupied


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield blocks (rows, len(y)) of the squared distances between rows, exactly 0 for equal rows."""
    norms = y.square().sum(1)
    for part in x.split(ROWS):
        scale = part.square().sum(1)[:, None] + norms
        squared = torch.addmm(scale, part, y.T, alpha=-2)
        # |x|^2 + |y|^2 - 2xy cancels to rounding noise for equal rows, which would put them outside a radius of 0.
        yield squared.masked_fill_(squared < SAME * scale, 0.0)
