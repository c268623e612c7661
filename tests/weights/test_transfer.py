"""Initialisation from another network's weights."""

from dataclasses import replace

import pytest
import torch
from helpers import TINY

from aim_lightning.models import AiM
from aim_lightning.utils.errors import UserError
from aim_lightning.weights.load import CLASSES, POSITIONS, adapt_weights


def test_other_classes_keep_the_null_class_and_all_else():
    source, model = AiM(TINY), AiM(replace(TINY, num_classes=7))
    fresh = model.state_dict()[CLASSES].clone()
    weights, notes = adapt_weights(model, source.state_dict())
    model.load_state_dict(weights)
    assert notes == [f"{CLASSES}: 7 fresh classes in place of 3, the null class is kept"]
    assert torch.equal(model.state_dict()[CLASSES][:-1], fresh[:-1])
    for name, value in source.state_dict().items():
        current = model.state_dict()[name]
        assert torch.equal(current[-1], value[-1]) if name == CLASSES else torch.equal(current, value)


def test_another_grid_resizes_positions_in_two_dimensions():
    source, model = AiM(TINY), AiM(replace(TINY, num_tokens=16))
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(2.0), indexing="ij")
    plane = (10 * rows + columns).flatten()[:, None].expand(-1, TINY.d_model)
    weights = source.state_dict()
    weights[POSITIONS] = torch.cat((plane, weights[POSITIONS][-1:]))
    adapted, notes = adapt_weights(model, weights)
    model.load_state_dict(adapted)
    grid = adapted[POSITIONS][:-1, 0].unflatten(0, (4, 4))
    assert notes == [f"{POSITIONS}: resized from 2x2 to 4x4 codes"]
    assert (grid.diff(dim=0) > 0).all() and (grid.diff(dim=1) > 0).all()
    assert torch.equal(adapted[POSITIONS][-1], weights[POSITIONS][-1])


def test_equal_sizes_change_nothing():
    source, model = AiM(TINY), AiM(TINY)
    adapted, notes = adapt_weights(model, source.state_dict())
    assert notes == [] and all(torch.equal(adapted[name], value) for name, value in source.state_dict().items())


def test_other_differences_remain_for_strict_loading():
    source, model = AiM(replace(TINY, vocab_size=20)), AiM(TINY)
    adapted, _ = adapt_weights(model, source.state_dict())
    with pytest.raises(RuntimeError, match="word_embeddings"):
        model.load_state_dict(adapted)
    with pytest.raises(UserError, match="not a square grid"):
        adapt_weights(AiM(replace(TINY, num_tokens=9)), AiM(replace(TINY, num_tokens=6)).state_dict())
