"""Our AiM against numbers that the published code computed (tests/fixtures)."""

import dataclasses

import pytest
import torch
from helpers import TINY, fixture, published_aim, random_aim, relative
from torch.nn import functional as F

from aim_lightning.models import AiM, AiMConfig
from aim_lightning.sampling import generate

CASES = ["tiny_group", "tiny_adaln"]


@pytest.mark.parametrize("name", CASES)
def test_names_shapes_and_parameters(name):
    model, (facts, _) = published_aim(name), fixture(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == facts["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == facts["params"]


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients(name):
    model, (_, data) = published_aim(name), fixture(name)
    labels, codes = data["labels"][:, 0], data["tokens"]
    logits = model(codes[:, :-1], labels)
    null = model(codes[:, :-1], torch.full_like(labels, model.null_class))
    assert relative(logits[:, data["logit_positions"]], data["logits"]) <= 1e-5
    assert relative(null[:, data["logit_positions"]], data["logits_null"]) <= 1e-5
    loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
    assert abs(float(loss) - float(data["loss"])) <= 1e-6 * float(data["loss"])
    loss.backward()
    for key, parameter in model.named_parameters():
        expected = data[f"grad_norm/{key}"]
        assert abs(float(parameter.grad.norm() / expected) - 1) <= 1e-4, key


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cfg_scale", [1, 3])
def test_greedy_codes_with_the_published_positions(name, cfg_scale):
    model, (_, data) = published_aim(name), fixture(name)
    codes = generate(model, data["labels"][:, 0], cfg_scale=cfg_scale, top_k=1, position_offset=1)
    assert torch.equal(codes, data[f"greedy_{cfg_scale}"])


@pytest.mark.parametrize("adaln", ["none", "layer", "group"])
@pytest.mark.parametrize("d_intermediate", [0, 48])
@pytest.mark.parametrize("position_embedding", [True, False])
def test_step_equals_forward_at_every_position(adaln, d_intermediate, position_embedding):
    sizes = {"n_layer": 3, "vocab_size": 40, "num_classes": 5, "num_tokens": 21, "d_state": 16, "chunk_size": 8}
    options = {"adaln": adaln, "d_intermediate": d_intermediate, "position_embedding": position_embedding}
    model = random_aim(dataclasses.replace(TINY, **sizes, **options), 0.3, seed=0)
    codes, labels = torch.randint(40, (4, 21)), torch.tensor([0, 2, 4, 5])
    with torch.no_grad():
        complete = model(codes[:, :-1], labels)
        condition, states, steps = model.backbone.condition(labels), model.new_states(4), []
        for t in range(21):
            steps.append(model.step(codes[:, t - 1] if t else None, t - 1, condition, states))
    assert max(relative(step, complete[:, t]) for t, step in enumerate(steps)) <= 1e-5


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cfg_scale", [1, 3])
def test_greedy_codes_are_the_argmax_of_teacher_forcing(name, cfg_scale):
    """At every position, with the positions of training: code i has position i in both."""
    model = published_aim(name)
    labels = torch.tensor([0, 1, model.null_class - 1])
    codes = generate(model, labels, cfg_scale=cfg_scale, top_k=1)
    with torch.no_grad():
        cond = model(codes[:, :-1], labels)
        null = model(codes[:, :-1], torch.full_like(labels, model.null_class))
    guided = null + cfg_scale * (cond - null)
    assert torch.equal(guided.argmax(-1), codes)
    assert codes.unique().numel() > 1


def test_prefix_of_no_codes_and_causality():
    model = published_aim("tiny_group")
    labels, codes = torch.tensor([1, 2]), torch.randint(128, (2, 15))
    with torch.no_grad():
        empty, complete = model(codes[:, :0], labels), model(codes, labels)
        changed = model(torch.cat((codes[:, :7], (codes[:, 7:] + 1) % 128), dim=1), labels)
    assert empty.shape == (2, 1, 128)
    assert relative(empty, complete[:, :1]) <= 1e-5
    assert relative(changed[:, :8], complete[:, :8]) <= 1e-6
    assert relative(changed[:, 8:], complete[:, 8:]) > 1e-2


@pytest.mark.parametrize(
    ("name", "count"),
    [("AiM-B", 147_622_080), ("AiM-L", 349_760_000), ("AiM-XL", 763_291_392), ("AiM-1B", 1_335_944_192)],
)
def test_published_sizes(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in AiM(AiMConfig.preset(name)).parameters()) == count


def test_flops_count_modulation_once_an_image():
    with torch.device("meta"):
        model = AiM(AiMConfig())
    assert model.flops_per_image() == pytest.approx(173e9, rel=0.005)
    # Another group adds only weights of class modulation.
    two, three = (AiM(dataclasses.replace(TINY, num_groups=groups)) for groups in (2, 3))
    added = sum(p.numel() for p in three.parameters()) - sum(p.numel() for p in two.parameters())
    assert added > 0 and three.flops_per_image() - two.flops_per_image() == 6 * added
