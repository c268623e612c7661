"""The Kernel Inception Distance (arXiv 1801.01401), with the random subsets of torch-fidelity."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from aim_lightning.metrics.sample_features import SampleFeatures


class KernelDistance(SampleFeatures):
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3: mean and standard deviation over random subsets.

    Each rank adds its own images with their indices, which decide what a subset contains.

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
            ValueError: fewer than two images on either side, or two images with the same index.
        """
        features = self.in_order()
        # A plain attribute, not a state: the reference is equal on every rank and is never gathered.
        reference = self.reference.to(features.device)
        size = min(self.subset_size, len(features), len(reference))
        if size < 2:
            raise ValueError("KernelDistance needs at least two images on either side")
        rng = np.random.RandomState(self.seed)  # torch-fidelity's generator and order of calls
        values = []
        for _ in range(self.subsets):
            rows = [torch.from_numpy(rng.choice(len(x), size, replace=False)) for x in (features, reference)]
            values.append(poly_mmd(features[rows[0]].double(), reference[rows[1]].double()))
        values = torch.stack(values)
        return {"mean": values.mean(), "std": values.std(correction=0)}
