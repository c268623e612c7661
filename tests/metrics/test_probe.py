"""The linear probe and the class agreement."""

import pytest
import torch

from aim_lightning.metrics.probe import L2, ClassAgreement, fit_probe, predict

torch.set_num_threads(1)


def clusters(rows: int = 300, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Well separated clouds whose features differ in scale, with one constant feature."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    x = 6 * torch.eye(classes, 5)[labels] + torch.randn(rows, 5, generator=generator)
    x[:, 4] = 7
    return x * torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0]) + 50, labels


def test_separable_classes_are_learned_in_inference_mode_too():
    x, labels = clusters()
    with torch.inference_mode():
        weight, bias = fit_probe(x, labels, 3)
    assert weight.shape == (3, 5) and bias.shape == (3,) and not weight.is_inference()
    held_out, expected = clusters(seed=1)
    assert (predict(held_out, weight, bias) == expected).double().mean() > 0.99
    assert torch.equal(weight[:, 4], torch.zeros(3, dtype=torch.float64))


def test_same_inputs_give_the_same_probe_and_it_reaches_the_minimum():
    x, labels = clusters()
    (weight, bias), again = fit_probe(x, labels, 3), fit_probe(x.clone(), labels.clone(), 3)
    assert torch.equal(weight, again[0]) and torch.equal(bias, again[1])
    x = x.double()
    deviation = x.std(0, correction=0)
    standardised = (x - x.mean(0)) / deviation.clamp(min=1e-300)
    standardised[:, 4] = 0
    error = torch.softmax(x @ weight.T + bias, 1) - torch.nn.functional.one_hot(labels, 3)
    gradient = error.T @ standardised / len(x) + L2 * weight * torch.where(deviation > 0, deviation, 1)
    assert gradient.abs().max() < 1e-5


def test_agreement_is_the_same_for_any_batches():
    x, labels = clusters()
    probe = fit_probe(x, labels, 3)
    asked = labels.clone()
    asked[:75] = (asked[:75] + 1) % 3
    expected = float((predict(x, *probe) == asked).double().mean())
    assert 0.7 < expected < 0.8
    for batch in (1, 7, 300):
        agreement = ClassAgreement(*probe)
        for part in zip(x.split(batch), asked.split(batch), strict=True):
            agreement.update(*part)
        value = agreement.compute()
        assert value.dtype == torch.float64 and float(value) == expected
    agreement.reset()
    agreement.update(x[:0], asked[:0])
    assert agreement.compute().isnan()


def test_agreement_is_summed_over_processes():
    x, labels = clusters()
    one, two = (ClassAgreement(*fit_probe(x, labels, 3)) for _ in range(2))
    one.update(x[:10], labels[:10])
    two.update(x[10:], (labels[10:] + 1) % 3)
    one.merge_state(two)
    assert float(one.compute()) == pytest.approx(10 / 300)
