"""Adversarial losses of both networks and the adaptive weight."""

import pytest
import torch
from torch.nn import functional as F

from aim_lightning.losses import adaptive_weight, discriminator_loss, generator_loss

LOSSES = ("hinge", "non_saturating", "vanilla")


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 1, 6, 6, generator=generator) * 3 for _ in range(2)]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradients_of_both_losses_have_opposite_signs(loss, logits):
    real, fake = (value.requires_grad_() for value in logits)
    (to_fake,) = torch.autograd.grad(generator_loss(loss, fake), fake)
    assert (to_fake < 0).all()  # descent raises the logits of reconstructions
    to_real, to_fake = torch.autograd.grad(discriminator_loss(loss, real, fake), (real, fake))
    assert (to_real <= 0).all() and (to_fake >= 0).all() and to_real.min() < 0 < to_fake.max()


def test_non_saturating_is_cross_entropy_with_the_arguments_in_order(logits):
    """Compare with the published code, which swaps target and logits and thereby changes its loss."""
    real, fake = logits
    entropy = F.binary_cross_entropy_with_logits
    assert torch.allclose(generator_loss("non_saturating", fake), entropy(fake, torch.ones_like(fake)))
    expected = 0.5 * (entropy(real, torch.ones_like(real)) + entropy(fake, torch.zeros_like(fake)))
    assert torch.allclose(discriminator_loss("non_saturating", real, fake), expected)
    swapped = 0.5 * (entropy(torch.ones_like(real), real) + entropy(torch.zeros_like(fake), fake))
    assert not torch.allclose(discriminator_loss("non_saturating", real, fake), swapped)
    assert torch.equal(discriminator_loss("vanilla", real, fake), discriminator_loss("non_saturating", real, fake))
    assert torch.equal(generator_loss("vanilla", fake), -fake.mean())


def test_hinge_ignores_logits_beyond_the_margin():
    real, fake = torch.tensor([1.5, 3.0]), torch.tensor([-1.5, -9.0])
    assert discriminator_loss("hinge", real, fake) == 0
    assert discriminator_loss("hinge", torch.zeros(3), torch.zeros(3)) == 1
    assert discriminator_loss("hinge", real, -fake) == pytest.approx(0.5 * (2.5 + 10) / 2)


def both_losses(pixels=3.0, adversarial=-0.5):
    """Return losses that are linear in the last layer's weight, with gradients of known norm."""
    weight = torch.ones(2, 3, requires_grad=True)
    direction = torch.zeros(2, 3)
    direction[0, 0] = 1.0
    return (weight * direction).sum() * pixels, (weight * direction).sum() * adversarial, weight


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    pixels, adversarial, weight = both_losses()
    result = adaptive_weight(pixels, adversarial, weight, lambda value: value)
    assert result == pytest.approx(3.0 / (0.5 + 1e-4)) and not result.requires_grad
    (pixels + result * adversarial).backward()  # the graphs are still there
    assert torch.isfinite(weight.grad).all()
    scaled = adaptive_weight(*both_losses(), lambda value: value, scale=1024.0)
    assert scaled == pytest.approx(float(result))


def test_adaptive_weight_has_an_upper_bound():
    assert adaptive_weight(*both_losses(adversarial=0.0), lambda value: value) == 1e4


def test_adaptive_weight_uses_the_mean_gradient_over_ranks():
    pixels, adversarial, weight = both_losses()
    other = torch.stack((torch.full((2, 3), 9.0), torch.zeros(2, 3)))
    result = adaptive_weight(pixels, adversarial, weight, lambda value: (value + other) / 2)
    expected = torch.full((2, 3), 4.5)
    expected[0, 0] = 6.0
    assert result == pytest.approx(float(expected.norm() / (0.25 + 1e-4)))
