"""Activation checkpointing of AiM: the same bits with fewer kept activations."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY, random_weights

from aim_lightning.models import AiM
from aim_lightning.models.aim import recompute

CONFIG = replace(TINY, n_layer=5, d_intermediate=24, mixer_dropout=0.3, mlp_dropout=0.2, token_dropout=0.1)
SEGMENTS = {"none": 0, "blocks": 5, "all": 3}  # segments of 2, 2 and 1 blocks


@pytest.fixture
def segments(monkeypatch) -> list[int]:
    """Return a list that collects the first block of every segment that will be recomputed."""
    starts = []
    original = recompute.checkpoint

    def counting(segment, start: int, *state, **options):
        starts.append(start)
        return original(segment, start, *state, **options)

    monkeypatch.setattr(recompute, "checkpoint", counting)
    return starts


def loss_and_gradients(mode: str, compiled: bool = False) -> list[torch.Tensor]:
    """Return the training loss, all gradients and the next random number, which shows the state of the generator."""
    torch.manual_seed(0)
    model = random_weights(AiM(CONFIG, "torch", mode), 0.2, vectors=True)
    if compiled:
        model.compile(backend="aot_eager")
    codes = torch.randint(CONFIG.vocab_size, (2, CONFIG.num_tokens))
    loss = model.loss(codes, torch.tensor([0, 2]))
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters()), torch.rand(1)]


@pytest.mark.parametrize("mode", SEGMENTS)
def test_loss_gradients_and_random_state_equal_those_without_it(mode, segments):
    expected = loss_and_gradients("none")
    assert segments == []
    result = loss_and_gradients(mode)
    assert len(segments) == SEGMENTS[mode]
    assert all(torch.equal(value, other) for value, other in zip(result, expected, strict=True))


def test_evaluation_recomputes_nothing(segments):
    model = AiM(CONFIG, "torch", "blocks")
    codes, labels = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    model.eval()(codes, labels)
    with torch.no_grad():
        model.train()(codes, labels)
        model.step(None, 0, model.backbone.condition(labels), model.new_states(1))
    assert segments == []


@pytest.mark.long
@pytest.mark.parametrize("mode", ["blocks", "all"])
def test_it_works_under_torch_compile(mode):
    frames = torch._dynamo.utils.counters["frames"]
    loss_and_gradients(mode, compiled=True)
    assert frames["ok"] == frames["total"] > 0
