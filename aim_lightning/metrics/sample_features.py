"""The features of every image, kept, for metrics that compare images with images."""

import torch
from torch import Tensor
from torchmetrics import Metric

from aim_lightning.metrics.nan_guard import FiniteValues


class SampleFeatures(FiniteValues, Metric):
    """Gathers features from all processes and puts them in the order of the images' numbers.

    The order decides which images a random subset holds, so results depend on neither processes nor batches.
    Memory: 4 bytes a value, 400 MB for 50,000 images of 2,048.

    Args:
        num_features: values an image.
        kwargs: torchmetrics' own.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, num_features: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.watch()
        self.num_features = num_features
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("indices", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, indices: Tensor) -> None:
        """Add features (B, F) of the images with these numbers (B,); B may be 0.

        Raises:
            ValueError: shapes that do not fit.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features or indices.shape != features.shape[:1]:
            raise ValueError(f"SampleFeatures was given {tuple(features.shape)} for {tuple(indices.shape)} images")
        self.note(features)
        self.features.append(features.detach().float())
        self.indices.append(indices.to(features.device, non_blocking=True))  # a wait would stop the GPU

    def sync(self, *args, **kwargs) -> None:
        """torchmetrics leaves a process without images out of the gathering, where the others would wait for it."""
        if isinstance(self.features, list) and not self.features:
            self.features.append(torch.zeros(0, self.num_features, device=self.device))
            self.indices.append(torch.zeros(0, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """float32 (N, F) of all processes in the order of the numbers; metrics that build on it compute theirs.

        Raises:
            ValueError: an image came twice.
            UserError: features were not finite.
        """
        return self.in_order()

    def in_order(self) -> Tensor:
        """float32 (N, F) of what this process holds, inside `compute` of what all do.

        Raises:
            ValueError: an image came twice.
            UserError: features were not finite.
        """
        self.check()
        features, indices = (_joined(state) for state in (self.features, self.indices))
        order = indices.argsort()
        if len(order) > 1 and not (indices[order].diff() > 0).all():
            raise ValueError("SampleFeatures was given an image twice")
        return features[order]


def _joined(state: Tensor | list[Tensor]) -> Tensor:
    return torch.cat(state) if isinstance(state, list) else state
