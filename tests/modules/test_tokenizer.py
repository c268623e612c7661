"""Validation metrics of the tokenizer's module."""

import math

import pytest
import torch
from helpers import TINY_VQ
from torch import Tensor

from aim_lightning.losses import TokenizerLoss
from aim_lightning.models.vq.model import Reconstruction
from aim_lightning.modules.optim import OptimizerConfig
from aim_lightning.modules.tokenizer import TokenizerModule


def tokenizer_module(**options) -> TokenizerModule:
    torch.manual_seed(0)
    return TokenizerModule(TINY_VQ, OptimizerConfig(schedule="constant"), 8, TokenizerLoss(), **options)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Return nearly white images, whose variance in a window is small relative to the squared mean."""
    images = torch.randint(240, 250, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return {"images": images.to(torch.uint8)}


def validate(module: TokenizerModule, batch: dict[str, Tensor]) -> dict[str, float]:
    """Validate one batch under the autocast of training."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        module.eval().validation_step(batch, 0)
    return {name: float(value) for name, value in module.scores.compute().items()}


def test_identical_images_give_ssim_1_under_autocast(batch, monkeypatch):
    module = tokenizer_module()
    quantized = module.network(module._images(batch)).quantized
    monkeypatch.setattr(module.network, "forward", lambda images: Reconstruction(images, quantized))
    assert validate(module, batch)["ssim"] == pytest.approx(1, abs=1e-6)


def test_scores_are_those_of_a_float32_reconstruction(batch):
    module = tokenizer_module()
    images = module._images(batch)
    with torch.no_grad():
        exact = module.network.eval()(images).images_BCHW.clamp(-1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module.network(images).images_BCHW.float().clamp(-1, 1)
    psnr, other = (10 * math.log10(4 / float((x.double() - images.double()).square().mean())) for x in (exact, rounded))
    scores = validate(module, batch)
    assert scores["psnr"] == pytest.approx(psnr, abs=1e-5) and abs(other - psnr) > 1e-4
