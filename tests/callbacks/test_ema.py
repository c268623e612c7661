"""The moving average alone."""

from types import SimpleNamespace

import pytest
import torch
from helpers import TINY_VQ, assert_user_error
from torch import nn

from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.models import VQModel


class Holder(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.device = network, torch.device("cpu")


@pytest.fixture
def pair():
    torch.manual_seed(0)
    module = Holder(VQModel(TINY_VQ))
    ema = EMA(decay=0.9, warm_up=False)
    ema.setup(None, module, "fit")
    return ema, module


def test_parameters_are_averaged_and_buffers_copied(pair):
    ema, module = pair
    weight = module.network.quant_conv.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1
        module.network.quantize.codebook_used.fill_(7)
    ema.update(module.network)
    assert torch.allclose(ema.network.quant_conv.weight, before + 0.1)
    assert (ema.network.quantize.codebook_used == 7).all()


def test_swap_and_back(pair):
    ema, module = pair
    with torch.no_grad():
        module.network.quant_conv.weight += 1
    raw, average = (n.quant_conv.weight.detach().clone() for n in (module.network, ema.network))
    ema.on_validation_start(None, module)
    assert torch.equal(module.network.quant_conv.weight, average)
    ema.on_validation_end(None, module)
    assert torch.equal(module.network.quant_conv.weight, raw)
    assert torch.equal(ema.network.quant_conv.weight, average)


def test_state_round_trip_and_warm_up(pair):
    ema, module = pair
    other = EMA(decay=0.9)
    other.setup(None, Holder(VQModel(TINY_VQ)), "fit")
    other.load_state_dict(ema.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(other.network.state_dict().values(), ema.network.state_dict().values(), strict=True)
    )
    with torch.no_grad():
        module.network.quant_conv.weight += 1
    before = other.network.quant_conv.weight.clone()
    other.update(module.network)  # the first decay of the warm-up is 1 / 10
    assert torch.allclose(other.network.quant_conv.weight - before, torch.full_like(before, 0.9))


def test_decay_out_of_range():
    assert_user_error("decay", EMA, decay=1.0)


def test_the_average_follows_the_device_of_the_module(pair):
    ema, module = pair
    module.device = torch.device("meta")
    ema.on_fit_start(None, module)
    assert {parameter.device.type for parameter in ema.network.parameters()} == {"meta"}


def test_the_average_is_updated_once_per_step_and_starts_from_loaded_weights(pair):
    ema, module = pair
    with torch.no_grad():
        module.network.quant_conv.weight += 1  # weights that `init_from` loads after `setup`
    ema.on_train_start(None, module)
    assert torch.equal(ema.network.quant_conv.weight, module.network.quant_conv.weight)
    trainer, updated = SimpleNamespace(datamodule=SimpleNamespace(plan=SimpleNamespace(accumulate=3))), []
    for number in range(7):
        before = ema.steps
        ema.on_train_batch_end(trainer, module, None, None, number)
        updated += [number] * (ema.steps - before)
    assert updated == [2, 5]
    with torch.no_grad():
        module.network.quant_conv.weight += 1
    ema.on_train_start(None, module)  # a resumed run keeps its average
    assert not torch.equal(ema.network.quant_conv.weight, module.network.quant_conv.weight)


def test_the_decay_grows_until_its_limit(pair):
    """Check (1 + step) / (10 + step), at most `decay`, on the change of a weight."""
    ema, module = pair
    ema.warm_up, ema.decay = True, 0.5
    weight, average = module.network.quant_conv.weight, ema.network.quant_conv.weight
    for step, decay in ((0, 1 / 10), (2, 3 / 12), (50, 0.5)):
        ema.steps = step
        with torch.no_grad():
            average.zero_()
            weight.fill_(1)
        ema.update(module.network)
        assert torch.allclose(average, torch.full_like(average, 1 - decay)) and ema.steps == step + 1
