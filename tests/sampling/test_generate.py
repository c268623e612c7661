"""Codes of `generate`: determinism, distribution, labels."""

import pytest
import torch
from helpers import TINY, TINY_VQ, assert_user_error, random_aim

from aim_lightning.models import AiM, VQModel
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.sampling import generate


@pytest.fixture(scope="module")
def model():
    return random_aim()


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
def test_image_depends_on_seed_and_index_alone(model, cfg_scale):
    labels, indices = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([7, 3, 100, 2**40, 0])
    options = {"cfg_scale": cfg_scale, "top_k": 9, "top_p": 0.95, "seed": 5}
    together = generate(model, labels, indices_B=indices, **options)
    torch.manual_seed(99)
    order = torch.tensor([4, 2, 0, 3, 1])
    apart = [generate(model, labels[i : i + 1], indices_B=indices[i : i + 1], **options)[0] for i in order]
    assert torch.equal(torch.stack(apart), together[order])


def test_seed_and_index_change_the_image(model):
    labels = torch.zeros(64, dtype=torch.int64)
    base = generate(model, labels, seed=0)
    assert not torch.equal(base, generate(model, labels, seed=1))
    assert base.unique(dim=0).shape[0] > 32
    assert base.min() >= 0 and base.max() < 16


def test_global_random_state_is_left_alone(model):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generate(model, torch.tensor([0, 1]))
    assert torch.equal(torch.get_rng_state(), before)


def test_on_step_sees_every_prefix(model):
    prefixes = []
    codes = generate(model, torch.tensor([1]), on_step=lambda step, prefix: prefixes.append((step, prefix.clone())))
    assert [step for step, _ in prefixes] == [0, 1, 2, 3]
    assert all(torch.equal(prefix, codes[:, : step + 1]) for step, prefix in prefixes)


def test_marginals_match_the_model(model):
    """The first code's frequencies over many images are the model's own probabilities."""
    labels = torch.full((4000,), 2)
    first = generate(model, labels, seed=11)[:, 0]
    with torch.no_grad():
        expected = model(torch.zeros(1, 0, dtype=torch.int64), torch.tensor([2]))[0, 0].softmax(-1)
    share = torch.bincount(first, minlength=16) / 4000
    assert (share - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("decoder", ["plain", "fast"])
def test_more_codes_than_there_are_and_no_labels(model, decoder):
    options = {"seed": 3, "decoder": decoder}
    assert torch.equal(*(generate(model, torch.tensor([0, 1]), top_k=k, **options) for k in (10**10, 0)))
    assert generate(model, torch.zeros(0, dtype=torch.int64), **options).shape == (0, model.config.num_tokens)


def test_labels_out_of_range_and_training_mode(model):
    generate(model, torch.tensor([3]))  # the null class
    assert_user_error("labels must be 0 to 3", generate, model, torch.tensor([4]))
    for labels in (7, [0.5], [True], [[0]]):
        assert_user_error(r"^labels are \(.* of torch\..*; give int64 labels \(B,\)$", generate, model, labels)
    assert_user_error("evaluation mode", generate, AiM(TINY).train(), torch.tensor([0]))


def test_pipeline_refuses_a_foreign_tokenizer(model):
    assert_user_error("do not belong together", AiMPipeline, model, VQModel(TINY_VQ))
