"""The Fréchet distance between two sets of features, on torchmetrics' sums."""

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.utilities import rank_zero_warn

from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.metrics.gaussian import covariance_root, frechet_distance, mean_and_covariance
from aim_lightning.metrics.nan_guard import FiniteValues

# Names of the sums -> torchmetrics' states.
REFERENCE_STATES = {
    "sum": "real_features_sum",
    "outer_sum": "real_features_cov_sum",
    "count": "real_features_num_samples",
}


class _PassThrough(nn.Module):
    """Hands features on: torchmetrics wants a network, and ours has run already, once for all metrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance(FiniteValues, FrechetInceptionDistance):
    """||mu_1 - mu_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) of the features of real and of fake images.

    Each process feeds its own images; `compute` adds up the sums of all. Sums, covariances and the result
    are float64: torchmetrics would round the result to the dtype of the features. Never call `set_dtype`,
    which turns the counts into floats, nor `.to(a dtype)`, which rounds the sums (the next update refuses).

    Args:
        network: gives the number of features; called only by `update_real` and `update_fake`.
        num_features: of another output of the network than its features, such as the spatial ones of sFID.
        kwargs: torchmetrics' own, such as `sync_on_compute=False` for one process's distance.
    """

    def __init__(self, network: FeatureNetwork, num_features: int | None = None, **kwargs) -> None:
        features = _PassThrough(num_features or network.num_features)
        super().__init__(feature=features, reset_real_features=False, normalize=False, **kwargs)
        self.watch()
        self.network = network
        self.orig_dtype = torch.float64  # of the result; torchmetrics sets it in `update` alone
        self._reference_loaded = False
        self._gaussian: tuple[Tensor, Tensor] | None = None
        self._gaussian_count: int | None = None
        self._root: Tensor | None = None
        self._warned = False

    @property
    def real_count(self) -> int:
        """Real samples of this process, or those of the loaded reference, 0 where it does not tell."""
        return int(self.real_features_num_samples) if self._gaussian is None else self._gaussian_count or 0

    @property
    def fake_count(self) -> int:
        """Fake samples of this process."""
        return int(self.fake_features_num_samples)

    def update_real(self, images: Tensor) -> None:
        """Add real images: uint8 (B, 3, H, W)."""
        self.update_features(self.network(images), real=True)

    def update_fake(self, images: Tensor) -> None:
        """Add generated images: uint8 (B, 3, H, W)."""
        self.update_features(self.network(images), real=False)

    def update_features(self, features: Tensor, real: bool) -> None:
        """Add what the network gave: (B, num_features), B may be 0.

        Raises:
            ValueError: another shape.
            RuntimeError: real samples on top of a loaded reference, or sums that were cast from float64.
        """
        if features.ndim != 2 or features.shape[1] != self.inception.num_features:
            wanted = f"(B, {self.inception.num_features})"
            raise ValueError(f"FrechetDistance takes features of shape {wanted}, not {tuple(features.shape)}")
        if real and self._reference_loaded:
            raise RuntimeError("FrechetDistance has a loaded reference, which real samples cannot be added to")
        if self.fake_features_sum.dtype != torch.float64:
            raise RuntimeError("the sums of FrechetDistance were cast from float64; keep it out of .to(dtype)")
        self.note(features)
        self.update(features.double(), real=real)

    def compute(self) -> Tensor:
        """The distance: float64 scalar, 0 or more up to rounding. Every process must call it.

        Raises:
            RuntimeError: fewer than two samples on either side.
            UserError: features were not finite.
        """
        self.check()
        counts = {"generated": self.fake_count, "real": self.real_count}
        if self._gaussian is not None and self._gaussian_count is None:
            del counts["real"]
        side = min(counts, key=counts.get)
        count = counts[side]
        if count < 2:
            raise RuntimeError("FrechetDistance needs at least two images on either side")
        if count < self.inception.num_features and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"FrechetDistance: {count} {side} images for {self.inception.num_features} features; "
                "the covariance is singular and the distance too high. Compare it only at this count."
            )
        fake = mean_and_covariance(self.fake_features_sum, self.fake_features_cov_sum, self.fake_features_num_samples)
        real = self.reference_gaussian()
        if self._gaussian is not None and self._root is None:
            self._root = covariance_root(real[1])  # of published statistics, once for all evaluations
        root = None if self._root is None else self._root.to(self.device)
        return frechet_distance(*real, *fake, root)

    def reference_gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean (F,) and covariance (F, F) of the real side, float64."""
        if self._gaussian is not None:
            return tuple(value.to(self.device) for value in self._gaussian)
        return mean_and_covariance(self.real_features_sum, self.real_features_cov_sum, self.real_features_num_samples)

    def load_gaussian(self, mean: Tensor, covariance: Tensor, count: int | None = None) -> None:
        """Take the real side from statistics: mean (F,) and covariance (F, F).

        Args:
            mean: of the features.
            covariance: of the features.
            count: images that they are of; None = not known.

        Raises:
            ValueError: other shapes.
        """
        features = self.inception.num_features
        if mean.shape != (features,) or covariance.shape != (features, features):
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise ValueError(f"reference statistics have shapes {shapes}; ({features},) and its square were expected")
        self._gaussian = mean.detach().double().clone(), covariance.detach().double().clone()
        self._reference_loaded, self._root, self._gaussian_count = True, None, count
        self._computed = None

    def reference_state(self) -> dict[str, Tensor]:
        """Sums over the real samples of all processes, every one of which must call it; for `mean_and_covariance`.

        Returns:
            "sum" (F,) and "outer_sum" (F, F) float64, "count" int64 scalar.

        Raises:
            UserError: features were not finite.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            self.check()
            return {key: getattr(self, state).clone() for key, state in REFERENCE_STATES.items()}
