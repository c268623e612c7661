"""Filters against plain definitions, on random distributions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_lightning.sampling.filters import Filters, guide, keep_top_k, keep_top_p, sample_categorical, sample_codes

logits = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=30).map(lambda v: torch.tensor([v]))


@settings(deadline=None)
@given(logits, st.integers(0, 40))
def test_top_k_keeps_the_largest(row, k):
    kept = keep_top_k(row, k).isfinite()[0]
    expected = min(k, row.shape[1]) if k else row.shape[1]
    assert kept.sum() >= expected  # ties at the threshold stay
    if not kept.all():
        assert row[0][kept].min() > row[0][~kept].max()
        assert (row[0][kept] > row[0][kept].min()).sum() < expected


@settings(deadline=None)
@given(logits, st.floats(0.01, 1))
def test_top_p_is_the_smallest_set_that_reaches_p(row, p):
    kept = keep_top_p(row, p).isfinite()[0]
    probability = row.double().softmax(-1)[0]
    assert kept.any()
    assert probability[kept].sum() >= p - 1e-6
    if kept.sum() > 1 and p < 1:
        assert probability[kept].sum() - probability[kept].min() < p + 1e-6
    if not kept.all():
        assert probability[kept].min() >= probability[~kept].max() - 1e-9


def test_top_p_stops_where_the_sum_is_exactly_p():
    row = torch.zeros(1, 4)  # four times 0.25, without rounding
    for p, kept in ((0.25, 1), (0.5, 2), (0.75, 3), (0.76, 4)):
        assert keep_top_p(row, p).isfinite().tolist() == [[True] * kept + [False] * (4 - kept)]


def test_sampling_follows_the_distribution():
    row = torch.tensor([[0.0, 1.0, float("-inf"), 2.0]])
    uniform = (torch.arange(20000) + 0.5) / 20000
    codes = sample_categorical(row.expand(20000, -1), uniform)
    share = torch.bincount(codes, minlength=4) / 20000
    assert torch.allclose(share, row.softmax(-1)[0], atol=1e-3)
    assert share[2] == 0


def test_sampling_at_the_edges_never_takes_an_excluded_code():
    row = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]])
    edges = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert sample_categorical(row.expand(4, -1), edges).tolist() == [1, 1, 3, 3]


def test_guidance_one_and_zero():
    cond, uncond = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.allclose(guide(cond, uncond, 1.0), cond)
    assert torch.allclose(guide(cond, uncond, 0.0), uncond)
    assert torch.allclose(guide(cond, uncond, 3.0), uncond + 3 * (cond - uncond))


def test_temperature_sharpens_and_top_k_one_is_argmax():
    row = torch.tensor([[1.0, 1.2, 0.9]]).expand(1000, -1)
    uniform = (torch.arange(1000) + 0.5) / 1000
    assert (sample_codes(row, uniform, Filters(temperature=0.01)) == 1).all()
    assert (sample_codes(row, uniform, Filters(top_k=1)) == 1).all()
    assert sample_codes(row, uniform, Filters()).unique().numel() == 3
