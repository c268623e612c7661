"""The Fréchet distance between two normal distributions (Dowson and Landau 1982; FID: arXiv 1706.08500, eq. 6)."""

import scipy.linalg
import torch
from torch import Tensor


def frechet_distance(
    mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor, root_1: Tensor | None = None
) -> Tensor:
    """||m_1 - m_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)).

    Two symmetric eigenvalue problems in float64 in place of the published evaluators' unsymmetric ones: the same value,
    several times faster, and never a complex number.

    Args:
        mean_1: (F,).
        covariance_1: (F, F), symmetric and positive semidefinite up to rounding.
        mean_2: (F,).
        covariance_2: (F, F).
        root_1: `covariance_root(covariance_1)` where it is known; half of the time.

    Returns:
        float64 scalar, 0 or more up to rounding.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    values = [value.double() for value in (mean_1, covariance_1, mean_2, covariance_2)]
    features = len(mean_1)
    if [tuple(value.shape) for value in values] != [(features,), (features, features)] * 2:
        raise ValueError(f"not two normal distributions: shapes {[tuple(value.shape) for value in values]}")
    if not all(value.isfinite().all() for value in values):
        raise ValueError("the distributions have values that are not finite")
    mean_1, covariance_1, mean_2, covariance_2 = values
    traces = covariance_1.trace() + covariance_2.trace()
    return (
        (mean_1 - mean_2).square().sum()
        + traces
        - 2 * _trace_of_root(covariance_root(covariance_1) if root_1 is None else root_1, covariance_2)
    )


def covariance_root(covariance: Tensor) -> Tensor:
    """R (F, F) with R R' = the covariance, float64."""
    values, vectors = _eigen(covariance.double())
    return vectors * values.clamp(min=0).sqrt()


def _trace_of_root(root_1: Tensor, covariance_2: Tensor) -> Tensor:
    """tr((S_1 S_2)^(1/2)): S_1 S_2 has the eigenvalues of R' S_2 R, where R R' = S_1."""
    product = root_1.T @ covariance_2 @ root_1
    return _eigen((product + product.T) / 2, vectors=False)[0].clamp(min=0).sqrt().sum()


def _eigen(matrix: Tensor, vectors: bool = True) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues, and eigenvectors where they are wanted.

    LAPACK's divide and conquer does not always converge with singular covariances; then by QR iteration, which is
    several times slower.
    """
    try:
        return torch.linalg.eigh(matrix) if vectors else (torch.linalg.eigvalsh(matrix), None)
    except torch.linalg.LinAlgError:
        found = scipy.linalg.eigh(matrix.cpu().numpy(), driver="ev")
        return tuple(torch.from_numpy(value).to(matrix) for value in found)


def mean_and_covariance(total: Tensor, outer: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and unbiased covariance (F, F) from float64 sums of features and of their outer products."""
    mean = total / count
    return mean, (outer - count * torch.outer(mean, mean)) / (count - 1)
