"""The moving average of the weights, without a trainer."""

from types import SimpleNamespace

import pytest
import torch
from helpers import TINY_VQ, assert_user_error
from torch import nn

from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.models import VQModel


def make(**options):
    module = nn.Module()
    module.network, module.device = VQModel(TINY_VQ), torch.device("cpu")
    ema = EMA(**options)
    ema.setup(None, module, "fit")
    return ema, module


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return make(decay=0.9, warm_up=False)


def weight(holder):
    return holder.network.quant_conv.weight


def shift(module):
    """Add 1 to a weight and return its value before."""
    before = weight(module).detach().clone()
    with torch.no_grad():
        weight(module).add_(1)
    return before


def test_parameters_are_averaged_and_buffers_copied(pair):
    ema, module = pair
    before = shift(module)
    module.network.quantize.codebook_used.fill_(7)
    ema.update(module.network)
    assert torch.allclose(weight(ema), before + 0.1)
    assert (ema.network.quantize.codebook_used == 7).all()


def test_swap_and_back(pair):
    ema, module = pair
    shift(module)
    raw, average = (weight(holder).detach().clone() for holder in (module, ema))
    ema.on_validation_start(None, module)
    assert torch.equal(weight(module), average)
    ema.on_validation_end(None, module)
    assert torch.equal(weight(module), raw) and torch.equal(weight(ema), average)


def test_state_round_trip_and_warm_up(pair):
    ema, module = pair
    other, _ = make(decay=0.9)
    other.load_state_dict(ema.state_dict())
    assert all(map(torch.equal, other.network.state_dict().values(), ema.network.state_dict().values()))
    shift(module)
    before = weight(other).clone()
    other.update(module.network)  # the first decay of the warm-up is 1 / 10
    assert torch.allclose(weight(other) - before, torch.full_like(before, 0.9))


def test_decay_out_of_range():
    assert_user_error("decay", EMA, decay=1.0)


def test_the_average_follows_the_device_of_the_module(pair):
    ema, module = pair
    module.device = torch.device("meta")
    ema.on_fit_start(None, module)
    assert {parameter.device.type for parameter in ema.network.parameters()} == {"meta"}


def test_the_average_is_updated_once_per_step_and_starts_from_loaded_weights(pair):
    ema, module = pair
    shift(module)  # weights that `init_from` loads after `setup`
    ema.on_train_start(None, module)
    assert torch.equal(weight(ema), weight(module))
    trainer, updated = SimpleNamespace(datamodule=SimpleNamespace(plan=SimpleNamespace(accumulate=3))), []
    for number in range(7):
        before = ema.steps
        ema.on_train_batch_end(trainer, module, None, None, number)
        updated += [number] * (ema.steps - before)
    assert updated == [2, 5]
    shift(module)
    ema.on_train_start(None, module)  # a resumed run keeps its average
    assert not torch.equal(weight(ema), weight(module))


@pytest.mark.parametrize(("step", "decay"), [(0, 1 / 10), (2, 3 / 12), (50, 0.5)])
def test_the_decay_grows_until_its_limit(pair, step, decay):
    """Check (1 + step) / (10 + step), at most `decay`, on the change of a weight."""
    ema, module = pair
    ema.warm_up, ema.decay, ema.steps = True, 0.5, step
    with torch.no_grad():
        weight(ema).zero_()
        weight(module).fill_(1)
    ema.update(module.network)
    assert torch.allclose(weight(ema), torch.full_like(weight(ema), 1 - decay)) and ema.steps == step + 1
