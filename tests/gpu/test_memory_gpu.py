"""Peak memory of AiM's training on an NVIDIA GPU against the estimate, with and without activation checkpointing."""

import copy
import gc
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from aim_lightning.cli.build.micro_batch import automatic_micro_batch
from aim_lightning.models import AiM, AiMConfig
from aim_lightning.models.aim.memory import BYTES_PER_PARAMETER, bytes_per_image

pytestmark = pytest.mark.gpu
IMAGES = 64
CONFIG = AiMConfig.preset("AiM-B")
MODES = ("none", "blocks", "all")


@cache
def second_step(mode: str) -> SimpleNamespace:
    """Return loss, norms of the gradients and peak memory of the second step, with AdamW and averaged weights."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.manual_seed(0)
    model = AiM(CONFIG, "triton", mode).cuda()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    codes = torch.randint(CONFIG.vocab_size, (IMAGES, CONFIG.num_tokens), device="cuda")
    labels = torch.arange(IMAGES, device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model.loss(codes, labels)
        loss.backward()
        optimizer.step()
    del average
    norms = torch.stack([parameter.grad.norm() for parameter in model.parameters()])
    return SimpleNamespace(
        loss=loss.item(), norms=norms.cpu(), peak=torch.cuda.max_memory_allocated() - before, parameters=count(model)
    )


def count(model: AiM) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_peak_is_near_the_estimate(mode):
    result = second_step(mode)
    estimate = IMAGES * bytes_per_image(CONFIG, "triton", mode) + BYTES_PER_PARAMETER * result.parameters
    assert result.peak == pytest.approx(estimate, rel=0.15)


@pytest.mark.parametrize("mode", MODES[1:])
def test_checkpointing_lowers_the_peak_and_changes_no_bit(mode):
    plain, result = second_step("none"), second_step(mode)
    assert result.peak < 0.7 * plain.peak
    assert result.loss == plain.loss and torch.equal(result.norms, plain.norms)


def test_auto_takes_the_memory_of_this_gpu():
    with torch.device("meta"):
        module = SimpleNamespace(network=AiM(CONFIG))
    size, note = automatic_micro_batch(module, "bf16-mixed", torch.device("cuda", 0), 2048)
    assert f"on {torch.cuda.get_device_name(0)}, backend triton)" in note
    needed = size * bytes_per_image(CONFIG) + BYTES_PER_PARAMETER * count(module.network)
    assert size > 1 and needed < torch.cuda.get_device_properties(0).total_memory
