"""FDr: independent arithmetic, the value of held-out images, its mean over networks, and its refusals."""

import numpy as np
import pytest
import torch
from helpers import assert_user_error
from metrics.builders import Means, random_images, reference_of, score
from scipy.linalg import sqrtm

from aim_lightning.metrics.fdr import FrechetRatio, mean_of_ratios
from aim_lightning.metrics.reference_statistics import ReferenceImages, chosen_rows
from aim_lightning.metrics.scores import Scores
from aim_lightning.utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:FrechetDistance")


@pytest.fixture(scope="module")
def network():
    return Means().load()


@pytest.fixture(scope="module")
def real(network):
    return reference_of(network, random_images(60))


def distance(network, images, others):
    (mean_1, covariance_1), (mean_2, covariance_2) = (
        (features.mean(0), np.cov(features, rowvar=False))
        for features in (network.outputs(side)["features"].double().numpy() for side in (images, others))
    )
    root = sqrtm(covariance_1 @ covariance_2).real
    return ((mean_1 - mean_2) ** 2).sum() + np.trace(covariance_1 + covariance_2 - 2 * root)


@pytest.mark.parametrize("count", [50, 30])
def test_the_ratio_equals_independent_distances_of_equal_numbers_of_images(network, real, count):
    heldout, samples = random_images(50, 1), random_images(count, 2, 200)
    values = score(network, real, samples, heldout=reference_of(network, heldout))
    smallest = heldout[chosen_rows(50, count)]  # the images of smallest hash
    expected = distance(network, samples, random_images(60)) / distance(network, smallest, random_images(60))
    assert values["fdr_means"] == pytest.approx(expected, rel=1e-6)
    assert score(network, real, smallest, heldout=reference_of(network, heldout))["fdr_means"] == pytest.approx(1)


def test_names_and_protocol_contain_the_ratio(network, real):
    scores = Scores(network, real, 30, compare=False, heldout=reference_of(network, random_images(50, 1)))
    assert scores.names() == ["fd_means", "fdr_means"]
    assert scores.protocol()["fdr"] == {"heldout": {"kind": "test"}, "num_heldout": 30}
    assert "fdr" not in Scores(network, real, 30).protocol()


def test_the_mean_over_networks_is_named_after_all_of_them():
    values = {"fid": 9.0, "fdr_inception": 2.0, "fdr_dinov2": 5.0}
    assert mean_of_ratios(values) == {"fdr_dinov2+inception": 3.5}
    assert mean_of_ratios({"fid": 9.0, "fdr_inception": 2.0}) == {}


def test_unusable_held_out_images_are_refused(network, real):
    few, published = reference_of(network, random_images(20)), ReferenceImages(real.gaussians, None, None)
    assert_user_error("needs 30 held-out images; there are 20 of 20 images", FrechetRatio, network, None, few, 30)
    assert_user_error("published statistics without", FrechetRatio, network, None, published, 30)
    flat = torch.zeros(60, 3, 8, 8, dtype=torch.uint8)
    for images in (flat, *(random_images(60, seed) for seed in range(4))):  # rounding of either sign
        same = reference_of(network, images)
        scores = Scores(network, same, 60, compare=False, heldout=same)
        with pytest.raises(UserError, match="no distance to the reference"):
            _ = scores.ratio.divisor
