"""The Inception Score (arXiv 1606.03498) in constant memory, independent of the order of the images."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from aim_lightning.metrics.feature_sets import FiniteValues

Splitting = Literal["adm", "torch_fidelity"]
ADM_SPLIT, TORCH_FIDELITY_SPLITS, TORCH_FIDELITY_SEED = 5000, 10, 2020


def split_numbers(num_images: int, splitting: Splitting) -> Tensor:
    """Return the split of each image by its index, int64 (num_images,).

    Both ways give ten splits of 5,000 for 50,000 images.

    Args:
        num_images: in the set.
        splitting: ``adm`` for consecutive splits of 5,000, the last one may be smaller; ``torch_fidelity`` for ten
            splits of a fixed shuffle.
    """
    if splitting == "adm":
        return torch.arange(num_images) // ADM_SPLIT
    order = torch.from_numpy(np.random.RandomState(TORCH_FIDELITY_SEED).permutation(num_images))
    ends = torch.arange(1, TORCH_FIDELITY_SPLITS + 1) * num_images // TORCH_FIDELITY_SPLITS
    numbers = torch.empty(num_images, dtype=torch.int64)
    numbers[order] = torch.bucketize(torch.arange(num_images), ends, right=True)
    return numbers


class InceptionScore(FiniteValues, Metric):
    """exp of the mean divergence of p(class | image) from p(class): mean and standard deviation over splits.

    The divergence of a split is (sum of p log p) / n - q log q with q = (sum of p) / n. Only the sums per split are
    stored, in float64, and summed over ranks.

    Args:
        num_images: in the set; each is added once, with its index.
        splitting: see `split_numbers`.
        num_classes: logits per image.
        kwargs: options of torchmetrics' `Metric`.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, num_images: int, splitting: Splitting = "adm", num_classes: int = 1008, **kwargs) -> None:
        super().__init__(**kwargs)
        self.splits = split_numbers(num_images, splitting)
        count = int(self.splits.max()) + 1
        self.add_state("inner", torch.zeros(count, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("marginal", torch.zeros(count, num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(count, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, indices: Tensor) -> None:
        """Add the logits of a batch.

        Args:
            logits: (B, C), B may be 0.
            indices: (B,) of the images in the set.
        """
        self.record_finite(logits)
        split = self.splits[indices.cpu()].to(logits.device, non_blocking=True)  # a wait would stop the GPU
        # In float32, sums over 50,000 images would lose digits.
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        self.inner.index_add_(0, split, (p * log_p).sum(1))
        self.marginal.index_add_(0, split, p)
        self.counts.index_add_(0, split, torch.ones_like(split))

    def compute(self) -> dict[str, Tensor]:
        """Return "mean" and "std", float64 scalars, over the splits that contain images; NaN without any.

        Raises:
            UserError: logits that are not finite.
        """
        self.check_finite()
        filled = self.counts > 0
        counts, q = self.counts[filled], self.marginal[filled] / self.counts[filled, None]
        scores = (self.inner[filled] / counts - torch.xlogy(q, q).sum(1)).exp()  # xlogy: 0 log 0 = 0
        return {"mean": scores.mean(), "std": scores.std(correction=0)}
