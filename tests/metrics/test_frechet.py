"""The Fréchet distance: right values, the same for any batches and processes."""

import math

import pytest
import torch
from helpers import assert_user_error
from metrics.builders import FEATURES, on_ranks
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from aim_lightning.metrics import count_suffix, metric_name
from aim_lightning.metrics.fid import FrechetDistance, frechet_distance, mean_and_covariance

torch.set_num_threads(1)


def gaussian(count: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(FEATURES, FEATURES, generator=generator, dtype=dtype)
    return torch.randn(count, FEATURES, generator=generator, dtype=dtype) @ mixing + seed


def filled(real, fake) -> FrechetDistance:
    distance = FrechetDistance(FEATURES)
    distance.update_features(real, real=True)
    distance.update_features(fake, real=False)
    return distance


def loaded(sums) -> FrechetDistance:
    distance = FrechetDistance(FEATURES)
    distance.load_gaussian(*mean_and_covariance(*sums))
    return distance


def value(distance: FrechetDistance) -> float:
    return float(distance.compute())


@pytest.mark.parametrize("features", [1, 2, 8])
def test_closed_form_of_gaussians(features):
    """Commuting covariances: ||difference of means||^2 + ||difference of roots||^2."""
    generator = torch.Generator().manual_seed(features)
    rotation = torch.linalg.qr(torch.randn(features, features, generator=generator).double()).Q
    roots = [torch.rand(features, generator=generator).double() + 0.1 for _ in range(2)]
    means = [torch.randn(features, generator=generator).double() for _ in range(2)]
    covariances = [rotation @ torch.diag(root**2) @ rotation.T for root in roots]
    distance = frechet_distance(means[0], covariances[0], means[1], covariances[1])
    expected = (means[0] - means[1]).square().sum() + (roots[0] - roots[1]).square().sum()
    assert float(distance) == pytest.approx(float(expected), rel=1e-10)


def test_closed_form_of_samples():
    # Samples with exactly diagonal covariances: the signs of a Hadamard matrix, scaled.
    signs = torch.tensor([[(-1.0) ** (r & c).bit_count() for c in range(1, 7)] for r in range(8)]).double()
    one, two = torch.arange(1, 7), torch.tensor([2, 0.5, 3, 1, 4, 2.5]).double()
    shift, unbiased = torch.arange(6.0), math.sqrt(8 / 7)
    expected = shift.square().sum() + (unbiased * (one - two)).square().sum()
    assert value(filled(signs * one, signs * two + shift)) == pytest.approx(float(expected), rel=1e-10)


def test_eigenvalues_that_do_not_converge_use_another_solver(monkeypatch):
    """Singular covariances, of fewer images than features: LAPACK may not converge."""
    sums = [(x.sum(0), x.T @ x, torch.tensor(len(x))) for x in (gaussian(30, 1), gaussian(40, 2))]
    gaussians = [part for side in sums for part in mean_and_covariance(*side)]
    expected = float(frechet_distance(*gaussians))

    def fail(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    for name in ("eigh", "eigvalsh"):
        monkeypatch.setattr(torch.linalg, name, fail)
    assert float(frechet_distance(*gaussians)) == pytest.approx(expected, rel=1e-9)


def test_same_value_as_torch_fidelity():
    real, fake = gaussian(500, 1), gaussian(400, 2)
    expected = fid_statistics_to_metric(fid_features_to_statistics(real), fid_features_to_statistics(fake), False)
    assert value(filled(real, fake)) == pytest.approx(expected["frechet_inception_distance"], rel=1e-8)


def test_float32_features_keep_a_float64_result():
    real, fake = gaussian(300, 1, torch.float32), gaussian(300, 2, torch.float32)
    result = filled(real, fake).compute()
    assert result.dtype == torch.float64
    assert float(result) == pytest.approx(value(filled(real.double(), fake.double())), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_any_batch_size_and_order(batch):
    real, fake, parts = gaussian(60, 1), gaussian(40, 2), FrechetDistance(FEATURES)
    for part in fake.flip(0).split(batch):
        parts.update_features(part, real=False)
    for part in real.split(batch):
        parts.update_features(part, real=True)
    assert (int(parts.real_features_num_samples), int(parts.fake_features_num_samples)) == (60, 40)
    assert value(parts) == pytest.approx(value(filled(real, fake)), rel=1e-9)


def test_two_processes_equal_one(tmp_path):
    """Uneven shares, and the reference both accumulated and loaded."""
    real, fake = gaussian(300, 1), gaussian(200, 2)
    alone = filled(real, fake)
    sums = alone.reference_sums()

    def work(rank):
        share = slice(0, 130) if rank == 0 else slice(130, None)
        both, other = filled(real[share], fake[share]), loaded(sums)
        other.update_features(fake[share], real=False)
        values = [both.compute(), other.compute()]
        return values, list(both.reference_sums()), int(both.real_features_num_samples)

    for (values, state, count), expected_count in zip(on_ranks(work, tmp_path), (130, 170), strict=True):
        assert [float(x) for x in values] == pytest.approx([value(alone)] * 2, rel=1e-9)
        torch.testing.assert_close(state, list(sums))
        assert count == expected_count  # of the rank again after the sum


def test_reference_round_trip_survives_reset():
    real, fake = gaussian(300, 1), gaussian(200, 2)
    full = filled(real, fake)
    distance = loaded(full.reference_sums())
    for _ in range(2):
        distance.reset()
        assert distance.fake_features_num_samples == 0
        distance.update_features(fake, real=False)
        assert value(distance) == pytest.approx(value(full), rel=1e-12)


def test_new_samples_and_a_new_reference_replace_the_cached_value():
    real, fake, more = gaussian(300, 1), gaussian(200, 2), gaussian(200, 3)
    distance = filled(real, fake)
    assert distance.compute() == filled(real, fake).compute()
    distance.update_features(more, real=False)
    both = torch.cat((fake, more))
    assert value(distance) == pytest.approx(value(filled(real, both)), rel=1e-9)
    for reference in (gaussian(300, 4), gaussian(300, 5)):  # the root of the first must not serve the second
        full = filled(reference, both)
        distance.load_gaussian(*mean_and_covariance(*full.reference_sums()))
        assert value(distance) == pytest.approx(value(full), rel=1e-9)


def test_fewer_images_than_features_warns_once():
    distance = filled(gaussian(10, 1), gaussian(5, 2))
    with pytest.warns(UserWarning, match="5 generated images for 6 features") as warnings:
        distance.compute()
        distance.update_features(gaussian(1, 3)[:0], real=False)
        distance.compute()
    assert len(warnings) == 1


def test_casts_are_refused():
    with pytest.raises(RuntimeError, match="float64"):
        FrechetDistance(FEATURES).to(torch.bfloat16).update_features(torch.zeros(3, 6), real=True)


@pytest.mark.parametrize("real", [True, False])
def test_features_that_are_not_finite_give_no_distance(real):
    distance = filled(gaussian(10, 1), gaussian(10, 2))
    distance.update_features(torch.full((3, 6), math.nan), real=real)
    assert_user_error(r"not finite \(NaN\): the feature network's weights are damaged", distance.compute)
    assert_user_error("not finite", distance.reference_sums)
    distance.reset()
    assert distance.not_finite == 0


def test_names():
    counts = {2000: "2k", 50000: "50k", 512: "512", 1500: "1500", 500: "500", 1000: "1k", 1: "1"}
    assert {count: count_suffix(count) for count in counts} == counts
    assert metric_name("fid", 50000) == "fid_50k"
    assert metric_name("fd_effnet_lite0", 2000, raw=True) == "fd_effnet_lite0_2k_raw"
