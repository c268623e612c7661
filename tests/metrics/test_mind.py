"""MIND: equality with optimal transport by assignment, closed forms, order, counts."""

import numpy as np
import pytest
import torch
from helpers import assert_user_error
from scipy.optimize import linear_sum_assignment

from aim_lightning.metrics.mind import MongeInceptionDistance

torch.set_num_threads(1)


def value_of(metric, features, order=None):
    for rows in (torch.arange(len(features)) if order is None else order).split(7):
        metric.update(features[rows], rows)
    return float(metric.compute())


def by_assignment(x, y, directions):
    """Return MIND with the cheapest of all pairings per direction, which needs no sorting."""
    costs = []
    for direction in directions.double().numpy():
        direction = direction / np.sqrt((direction**2).sum())
        cost = (x.double().numpy() @ direction)[:, None] - (y.double().numpy() @ direction)[None]
        costs.append((cost**2)[linear_sum_assignment(cost**2)].mean())
    return 3 * x.shape[1] * np.mean(costs)


def test_it_equals_optimal_transport_along_each_direction():
    x, y = torch.randn(12, 5), torch.rand(12, 5) * 3
    directions = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))
    value = value_of(MongeInceptionDistance(y, projections=8, seed=3), x)
    assert value == pytest.approx(by_assignment(x, y, directions), rel=1e-6)


@pytest.mark.parametrize(("samples", "reference"), [(9, 14), (14, 9)])
def test_of_unequal_sets_the_larger_one_is_reduced_as_in_torch_fidelity(samples, reference):
    """Its order of calls on one generator: the permutation first, then the directions."""
    x, y = torch.randn(samples, 4), torch.randn(reference, 4) + 1
    generator = torch.Generator().manual_seed(2020)
    chosen = torch.randperm(14, generator=generator)[:9]
    pair = (x, y[chosen]) if reference > samples else (x[chosen], y)
    metric = MongeInceptionDistance(y, projections=6)
    assert value_of(metric, x) == pytest.approx(by_assignment(*pair, torch.randn(6, 4, generator=generator)), rel=1e-6)
    protocol = {"projections": 6, "seed": 2020, "scale": "3 x 4", "images_per_side": 9, "reference_images": reference}
    assert metric.protocol(samples) == protocol


def test_a_shift_costs_three_times_its_squared_length():
    """A shift s changes a projection by s.u, whose mean square over all directions is |s|^2 / F."""
    x, shift = torch.randn(30, 16), torch.linspace(-1, 1, 16)
    assert value_of(MongeInceptionDistance(x), x + shift) == pytest.approx(3 * float(shift.square().sum()), rel=0.1)


def test_equal_sets_have_distance_zero_in_any_order_and_seeds_agree():
    x, y = torch.randn(40, 6), torch.randn(40, 6) + 0.5
    assert value_of(MongeInceptionDistance(x), x[torch.randperm(40)]) == 0
    metric = MongeInceptionDistance(y)
    first = value_of(metric, x)
    metric.reset()
    assert value_of(metric, x, torch.randperm(40)) == first
    other = value_of(MongeInceptionDistance(y, seed=1), x)
    assert other != first and other == pytest.approx(first, rel=0.1)


def test_wrong_features_are_refused():
    metric = MongeInceptionDistance(torch.randn(5, 3))
    metric.update(torch.zeros(2, 3), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="twice"):
        metric.compute()
    metric.update(torch.full((1, 3), float("inf")), torch.tensor([2]))
    assert_user_error("not finite", metric.compute)
