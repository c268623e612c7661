"""Inception on an NVIDIA GPU: float32 agrees with a CPU, TF32 is something else."""

import pytest
import torch
from metrics.random_inception import inception_file  # noqa: F401

from aim_lightning.metrics.features import InceptionFeatures

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*compares with none")]


def features(path, precision: str, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator)
    network = InceptionFeatures(str(path), precision).to(device).load()
    return network(images.to(device)).cpu().double()


def test_float32_is_that_of_a_cpu_and_tf32_is_not(inception_file, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default, which must not reach float32
    cpu = features(inception_file, "float32", "cpu")
    errors = {
        precision: float((features(inception_file, precision, "cuda") - cpu).norm() / cpu.norm())
        for precision in ("float32", "tf32")
    }
    assert errors["float32"] < 1e-4 < errors["tf32"] < 1e-1, errors
