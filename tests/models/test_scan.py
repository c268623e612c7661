"""The chunked scan against the plain recurrence."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_lightning.models.aim.scan import scan, scan_ref, scan_step, scan_step_


def inputs(length, batch=2, heads=3, channels=4, state=5, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    dt = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64).mul(0.3).to(dtype)
    a = -(1 + 15 * torch.rand(heads, generator=generator, dtype=torch.float64)).to(dtype)
    return (normal(batch, length, heads, channels), dt, a, normal(batch, length, state), normal(batch, length, state))


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 130), chunk=st.integers(1, 70), seed=st.integers(0, 1000))
def test_equals_the_recurrence_for_any_length(length, chunk, seed):
    values = inputs(length, seed=seed)
    reference = scan_ref(*values)
    assert (scan(*values, chunk) - reference).abs().max() <= 2e-6 * reference.abs().max()


def test_long_sequences_and_published_widths_stay_exact():
    values = inputs(300, batch=1, heads=2, channels=64, state=128)
    reference = scan_ref(*values)
    assert (scan(*values, 64) - reference).abs().max() <= 2e-6 * reference.abs().max()


@pytest.mark.parametrize(("length", "chunk"), [(5, 8), (8, 4), (7, 3)])
def test_gradients(length, chunk):
    values = [v.requires_grad_() for v in inputs(length, 1, 2, 2, 2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *v: scan(*v, chunk), values)


def test_the_inplace_step_equals_the_step():
    x, dt, a, b, c = inputs(1, batch=3)
    state = torch.randn(3, 3, 4, 5)
    y, new = scan_step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], state)
    assert torch.allclose(scan_step_(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], state), y, atol=1e-6)
    assert torch.allclose(state, new, atol=1e-6)


def test_strong_decay_does_not_overflow():
    x, dt, a, b, c = inputs(200)
    result = scan(x, dt * 1000, a, b, c, 64)
    assert torch.isfinite(result).all()


def saved_bytes(length: int) -> int:
    """Memory that the backward pass keeps; tensors that share theirs count once."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is used again
        return tensor

    values = [value.requires_grad_() for value in inputs(length, batch=1, heads=2, channels=16, state=16)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scan(*values, 64)
    return sum(storage.nbytes() for storage in kept.values())


def test_memory_grows_linearly():
    sizes = [saved_bytes(length) for length in (256, 512, 1024)]
    assert all(longer <= 2.1 * shorter for shorter, longer in itertools.pairwise(sizes)), sizes
