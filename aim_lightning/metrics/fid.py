"""The Fréchet distance (FID: arXiv 1706.08500) between the features of two sets of images, on torchmetrics' sums."""

import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.utilities import rank_zero_warn

from aim_lightning.metrics.feature_sets import FiniteValues
from aim_lightning.utils.lightning_private import drop_cached_result


class FrechetDistance(FiniteValues, FrechetInceptionDistance):
    """||mu_1 - mu_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) of the features of reference and of generated images.

    Each rank adds its own images; `compute` sums over ranks. Sums, covariances and the result are float64, whereas
    torchmetrics would round the result to the dtype of the features. Never call `set_dtype`, which turns the counts
    into floats, nor `.to(a dtype)`, which rounds the sums (the next update raises).

    Args:
        num_features: values per image.
        kwargs: options of torchmetrics' metric, such as `sync_on_compute=False` for the distance of one rank.
    """

    def __init__(self, num_features: int, **kwargs) -> None:
        # Identity in place of torchmetrics' network: the features are computed once for all metrics.
        identity = nn.Identity()
        identity.num_features = num_features
        super().__init__(feature=identity, reset_real_features=False, normalize=False, **kwargs)
        self.orig_dtype = torch.float64  # of the result; torchmetrics sets it in `update` only
        self._gaussian: tuple[Tensor, Tensor] | None = None
        self._gaussian_count: int | None = None
        self._root: Tensor | None = None
        self._warned = False

    def update_features(self, features: Tensor, real: bool) -> None:
        """Add features of images.

        Args:
            features: (B, num_features), B may be 0.
            real: True for reference images, False for generated ones.

        Raises:
            RuntimeError: sums that were cast from float64.
        """
        if self.fake_features_sum.dtype != torch.float64:
            raise RuntimeError("the sums of FrechetDistance were cast from float64; keep it out of .to(dtype)")
        self.record_finite(features)
        # Converted before the sums: outer products of many images cancel in the covariance.
        self.update(features.double(), real=real)

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar of 0 or more up to rounding; a collective.

        Raises:
            RuntimeError: fewer than two images on either side.
            UserError: features that are not finite.
        """
        self.check_finite()
        real_count = self.real_features_num_samples if self._gaussian is None else self._gaussian_count
        counts = {"generated": int(self.fake_features_num_samples)}
        counts |= {} if real_count is None else {"real": int(real_count)}
        side = min(counts, key=counts.get)
        if counts[side] < 2:
            raise RuntimeError("FrechetDistance needs at least two images on either side")
        if counts[side] < self.inception.num_features and not self._warned:
            self._warned = True
            few = f"{counts[side]} {side} images for {self.inception.num_features} features"
            consequence = "the covariance is singular and the distance too high. Compare it only at this count."
            rank_zero_warn(f"FrechetDistance: {few}; {consequence}")
        fake = mean_and_covariance(self.fake_features_sum, self.fake_features_cov_sum, self.fake_features_num_samples)
        if self._gaussian is None:
            return frechet_distance(*mean_and_covariance(*self._real_sums()), *fake)
        return self.distance_from_reference(*fake)

    def load_gaussian(self, mean: Tensor, covariance: Tensor, count: int | None = None) -> None:
        """Set the reference side from statistics.

        Args:
            mean: of the features, (F,).
            covariance: of the features, (F, F).
            count: number of images behind the statistics; None = unknown.
        """
        self._gaussian = mean.detach().double().clone(), covariance.detach().double().clone()
        self._root, self._gaussian_count = None, count
        drop_cached_result(self)  # `compute` may have run with the previous reference

    def distance_from_reference(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Return the distance between the loaded statistics and others, a float64 scalar.

        Args:
            mean: of the features, (F,).
            covariance: of the features, (F, F).
        """
        mean_1, covariance_1, mean_2, covariance_2 = (x.to(self.device) for x in (*self._gaussian, mean, covariance))
        if self._root is None:
            self._root = covariance_root(covariance_1)  # loaded statistics do not change: once for all evaluations
        return frechet_distance(mean_1, covariance_1, mean_2, covariance_2, self._root.to(self.device))

    def reference_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the arguments of `mean_and_covariance` for the reference images of all ranks; a collective.

        Raises:
            UserError: features that are not finite.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            self.check_finite()
            # Cloned inside the context: after it, the states are those of this rank again.
            return tuple(state.clone() for state in self._real_sums())

    def _real_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.real_features_sum, self.real_features_cov_sum, self.real_features_num_samples


def frechet_distance(
    mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor, root_1: Tensor | None = None
) -> Tensor:
    """Compute ||m_1 - m_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) (arXiv 1706.08500, eq. 6).

    Two symmetric eigenvalue problems in float64 replace the published evaluators' unsymmetric one: the same value,
    several times faster, and never complex.

    Args:
        mean_1: (F,).
        covariance_1: (F, F), symmetric and positive semidefinite up to rounding.
        mean_2: (F,).
        covariance_2: (F, F).
        root_1: `covariance_root(covariance_1)` if already computed; saves half of the time.

    Returns:
        float64 scalar, 0 or more up to rounding.
    """
    mean_1, covariance_1, mean_2, covariance_2 = (x.double() for x in (mean_1, covariance_1, mean_2, covariance_2))
    root_1 = covariance_root(covariance_1) if root_1 is None else root_1
    # S_1 S_2 has the eigenvalues of the symmetric matrix R' S_2 R, where R R' = S_1.
    product = root_1.T @ covariance_2 @ root_1
    trace_of_root = _eigen((product + product.T) / 2, vectors=False)[0].clamp(min=0).sqrt().sum()
    return (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * trace_of_root


def covariance_root(covariance: Tensor) -> Tensor:
    """Return R (F, F), float64, with R R' = the covariance."""
    values, vectors = _eigen(covariance.double())
    return vectors * values.clamp(min=0).sqrt()  # rounding makes small eigenvalues negative


def _eigen(matrix: Tensor, vectors: bool = True) -> tuple[Tensor, Tensor | None]:
    try:
        return torch.linalg.eigh(matrix) if vectors else (torch.linalg.eigvalsh(matrix), None)
    except torch.linalg.LinAlgError:
        # LAPACK's divide and conquer may not converge on a singular covariance; QR iteration does, but is slower.
        result = scipy.linalg.eigh(matrix.cpu().numpy(), driver="ev")
        return tuple(torch.from_numpy(value).to(matrix) for value in result)


def mean_and_covariance(total: Tensor, outer: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (F,) and unbiased covariance (F, F) from float64 sums.

    Args:
        total: sum of the features, (F,).
        outer: sum of their outer products, (F, F).
        count: number of images, scalar.
    """
    mean = total / count
    return mean, (outer - count * torch.outer(mean, mean)) / (count - 1)
