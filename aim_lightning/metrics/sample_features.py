"""Base classes of metrics: a guard against NaN, and the features of every image in the order of its index."""

import torch
from torch import Tensor
from torchmetrics import Metric

from aim_lightning.utils.errors import UserError


class FiniteValues:
    """Mixin of torchmetrics' `Metric` that records values that are not finite and raises in `compute`.

    The record stays on the device, since reading it in each update would synchronize a GPU. It is summed over ranks
    like any state, so that all ranks raise together instead of waiting for one that has failed.
    """

    def add_finite_state(self) -> None:
        """Register the counter; call it in `__init__`."""
        self.add_state("not_finite", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def record_finite(self, values: Tensor) -> None:
        """Count an update whose values contain NaN or infinity; call it in `update`."""
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
        self.add_finite_state()
        self.num_features = num_features
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("indices", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, indices: Tensor) -> None:
        """Add the features of a batch.

        Args:
            features: (B, F), B may be 0.
            indices: (B,) of the images in the set.

        Raises:
            ValueError: shapes that do not fit.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features or indices.shape != features.shape[:1]:
            raise ValueError(f"SampleFeatures was given {tuple(features.shape)} for {tuple(indices.shape)} images")
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
        """Return the features of all ranks, float32 (N, F); subclasses return their metric instead.

        Raises:
            ValueError: two images with the same index.
            UserError: features that are not finite.
        """
        return self.in_order()

    def in_order(self) -> Tensor:
        """Return this rank's features, float32 (N, F), sorted by index; inside `compute` those of all ranks.

        Raises:
            ValueError: two images with the same index.
            UserError: features that are not finite.
        """
        self.check_finite()
        # A list before the gathering, a tensor after it.
        states = (self.features, self.indices)
        features, indices = (torch.cat(state) if isinstance(state, list) else state for state in states)
        # Sorted by index, since ranks and batches may come in any order.
        order = indices.argsort()
        if len(order) > 1 and not (indices[order].diff() > 0).all():
            raise ValueError("SampleFeatures was given an image twice")
        return features[order]
