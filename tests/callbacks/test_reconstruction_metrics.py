"""The precision of reconstructions that are scored."""

import torch
from helpers import TINY_VQ

from aim_lightning.callbacks.evaluation.reconstruction_metrics import ReconstructionMetrics
from aim_lightning.models import VQModel


def test_reconstructions_are_float32_whatever_training_uses(monkeypatch):
    """TF32 is not float32, and cuDNN uses it by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    settings = []

    class Spy(VQModel):
        def forward(self, images):
            flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            settings.append((*flags, torch.is_autocast_enabled("cpu"), images.dtype))
            return super().forward(images)

    module = torch.nn.Module()
    module.network, module.device = Spy(TINY_VQ), torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        result = ReconstructionMetrics._reconstructed(module, torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert settings == [(False, False, False, torch.float32)] and result.dtype == torch.uint8
    assert torch.backends.cudnn.allow_tf32
