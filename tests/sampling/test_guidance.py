"""Guidance over the sequence: the curves, and that they reach the logits."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
from helpers import random_aim
from hypothesis import given
from hypothesis import strategies as st

from aim_lightning.sampling import generate
from aim_lightning.sampling.filters import guide
from aim_lightning.sampling.guidance import Schedule, guidance_scales
from aim_lightning.sampling.plain_decoder import PlainDecoder


@pytest.fixture(scope="module")
def model():
    return random_aim()


@given(
    st.integers(1, 300),
    st.floats(0, 20),
    st.sampled_from(get_args(Schedule)),
    st.floats(0.1, 8),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_every_schedule_stays_between_none_and_all(tokens, scale, schedule, power, interval):
    scales = guidance_scales(tokens, scale, schedule, power, interval)
    assert len(scales) == tokens and all(isinstance(value, float) for value in scales)
    assert min(1, scale) - 1e-9 <= min(scales) and max(scales) <= max(1, scale) + 1e-9
    if schedule in ("linear", "cosine", "power"):
        assert scales[0] == 1.0 and (tokens == 1 or scales[-1] == pytest.approx(scale))
        assert all((b - a) * (scale - 1) >= -1e-9 for a, b in pairwise(scales))


def test_values():
    assert guidance_scales(3, 1.7) == [1.7, 1.7, 1.7]
    assert guidance_scales(3, 5, "linear") == [1, 3, 5]
    assert guidance_scales(5, 3, "cosine") == pytest.approx([1, 1.2929, 2, 2.7071, 3], abs=1e-4)
    assert guidance_scales(5, 3, "power", cfg_power=1) == guidance_scales(5, 3, "cosine")
    assert guidance_scales(3, 3, "power", cfg_power=2)[1] == pytest.approx(1.2929, abs=1e-4)
    assert guidance_scales(5, 4, "interval", cfg_interval=(0.25, 0.75)) == [1, 4, 4, 4, 1]


def test_each_step_gets_its_scale(model):
    """Each step uses its scale on both branches."""
    labels, scales = torch.tensor([0, 2]), [1.0, 4.0, 1.0, 2.0]
    decoder = PlainDecoder(model, labels, scales, 0)
    alone = [PlainDecoder(model, which, [1.0] * 4, 0) for which in (labels, torch.full((2,), model.null_class))]
    codes = None
    for step, scale in enumerate(scales):
        cond, uncond = (one.logits(codes, step) for one in alone)
        torch.testing.assert_close(decoder.logits(codes, step), guide(cond, uncond, scale), atol=1e-4, rtol=1e-4)
        codes = torch.tensor([step, step + 3])


def test_a_constant_schedule_and_a_full_interval_are_the_plain_one(model):
    labels = torch.tensor([0, 1, 2])
    plain = generate(model, labels, cfg_scale=2.0, seed=1)
    assert torch.equal(generate(model, labels, cfg_scale=2.0, seed=1, cfg_schedule="interval"), plain)
    none = generate(model, labels, seed=1)
    off = generate(model, labels, cfg_scale=2.0, seed=1, cfg_schedule="interval", cfg_interval=[0.4, 0.5])
    assert torch.equal(off, none)  # no step of four lies there
    many = torch.arange(60) % 3
    pair = [generate(model, many, cfg_scale=6.0, seed=1, cfg_schedule=s) for s in ("linear", "constant")]
    assert not torch.equal(*pair)
