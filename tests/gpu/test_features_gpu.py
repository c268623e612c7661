"""Feature networks and MIND on an NVIDIA GPU: float32 agrees with a CPU, TF32 within its precision."""

import json

import numpy as np
import pytest
import torch
from metrics.builders import inception_file  # noqa: F401
from metrics.test_dinov2 import SIZE, weights  # noqa: F401
from PIL import Image

from aim_lightning.cli.main import main
from aim_lightning.metrics.features import DINOv2Features, InceptionFeatures
from aim_lightning.metrics.mind import MongeInceptionDistance

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*compares with none")]


def features(path, precision: str, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator)
    network = InceptionFeatures(str(path), precision).load(torch.device(device))
    return network(images.to(device)).cpu().double()


def test_float32_is_that_of_a_cpu_and_tf32_is_not(inception_file, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default, which must not reach float32
    cpu = features(inception_file, "float32", "cpu")
    errors = {
        precision: float((features(inception_file, precision, "cuda") - cpu).norm() / cpu.norm())
        for precision in ("float32", "tf32")
    }
    assert errors["float32"] < 1e-4 < errors["tf32"] < 1e-1, errors


def test_dinov2_and_mind_are_those_of_a_cpu(weights):  # noqa: F811
    # Of the network's size: rounding after resizing would turn small differences into whole integers.
    images = torch.randint(0, 256, (40, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    results = {}
    for device in ("cpu", "cuda"):
        features = DINOv2Features(str(weights), **SIZE).load(torch.device(device))(images.to(device))
        results[device] = features.cpu().double()
        metric = MongeInceptionDistance(results["cpu"][:15].float()).to(device)
        metric.update(results["cpu"][15:].float().to(device), torch.arange(25))
        results[f"mind {device}"] = float(metric.compute())
    error = float((results["cuda"] - results["cpu"]).norm() / results["cpu"].norm())
    assert error < 1e-4, error
    assert results["mind cuda"] == pytest.approx(results["mind cpu"], rel=1e-9)


def test_evaluate_in_tf32_records_it(inception_file, tmp_path, monkeypatch, own_signals):  # noqa: F811
    rng = np.random.default_rng(0)
    for directory in ("samples", "real"):
        (tmp_path / directory).mkdir()
        for number in range(16):
            image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / directory / f"{number}.png")
    section = {"class_path": "aim_lightning.metrics.features.InceptionFeatures"}
    section["init_args"] = {"weights": str(inception_file), "precision": "tf32"}
    (tmp_path / "tf32.yaml").write_text(json.dumps({"features": section}))
    monkeypatch.chdir(tmp_path)
    options = ["--config", "tf32.yaml", "--samples", "samples", "--reference", "real", "--out", "scored"]
    assert main(["evaluate", *options]) == 0
    scores = json.loads((tmp_path / "scored" / "scores.json").read_text())
    assert '"precision": "tf32"' in json.dumps(scores["protocol"])
