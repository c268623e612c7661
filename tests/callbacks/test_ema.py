"""The moving average alone."""

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
