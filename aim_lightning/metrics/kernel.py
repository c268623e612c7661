"""The Kernel Inception Distance (arXiv 1801.01401), subset by subset as torch-fidelity draws them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelDistance:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3, mean and standard deviation over random subsets.

    Args:
        subsets: drawn from either side.
        subset_size: pictures in a subset; fewer where a side has fewer (`protocol` says how many).
        seed: of the drawing.
    """

    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020

    def protocol(self, samples: int, reference: int) -> dict[str, Any]:
        """Plain values that fix the result for sets of these sizes."""
        size = min(self.subset_size, samples, reference)
        return {**asdict(self), "subset_size": size, "kernel": "(x.y / F + 1)^3", "reference_pictures": reference}

    def __call__(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        """{"mean", "std"} for features (N, F) of samples and (M, F) of real pictures; below 0 is possible.

        Raises:
            ValueError: fewer than two pictures on either side.
        """
        size = min(self.subset_size, len(features), len(reference))
        if size < 2:
            raise ValueError("KernelDistance needs at least two pictures on either side")
        rng = np.random.RandomState(self.seed)
        values = []
        for _ in range(self.subsets):
            rows = [torch.from_numpy(rng.choice(len(x), size, replace=False)) for x in (features, reference)]
            values.append(_squared_mmd(features[rows[0]].double(), reference[rows[1]].double()))
        values = torch.stack(values)
        return {"mean": float(values.mean()), "std": float(values.std(correction=0))}


def _squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    within = [_kernel(z, z) for z in (x, y)]
    pairs = len(x) * (len(x) - 1)
    own = sum((kernel.sum() - kernel.diagonal().sum()) / pairs for kernel in within)
    return own - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
