"""Training speed: peaks of devices, and the curves computed from images and seconds."""

from types import SimpleNamespace

import pytest
import torch

from aim_lightning.callbacks.logging import throughput
from aim_lightning.callbacks.logging.throughput import Throughput, peak_tflops
from aim_lightning.data.stream import BatchPlan

PEAKS = {
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H200": 989,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA RTX A6000": 155,
    "NVIDIA RTX 6000 Ada Generation": 364,
    "NVIDIA L40S": 362,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
    "Tesla T4": None,
}


@pytest.mark.parametrize(("name", "peak"), PEAKS.items())
def test_peak_of_a_device(name, peak):
    assert peak_tflops(name) == peak


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_the_clock_stops_after_the_device_has_finished(monkeypatch, kind):
    clock, logged = SimpleNamespace(now=0.0), {}

    def synchronize(device):
        clock.now += 2.0  # work that the device had left

    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(Throughput, "log_dict", lambda self, values: logged.update(values), raising=False)
    network = SimpleNamespace(config=SimpleNamespace(num_tokens=4), flops_per_image=lambda: 989e12)
    module = SimpleNamespace(network=network, device=torch.device(kind))
    data = SimpleNamespace(plan=BatchPlan(8, 2, 2), steps=0)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    trainer = SimpleNamespace(datamodule=data, optimizers=[optimizer], log_every_n_steps=2, world_size=2)
    callback = Throughput()
    for batch in range(4):  # two steps of two micro-batches, each launched in half a second
        callback.on_train_batch_start(trainer, module, None, batch)
        clock.now += 0.5
        data.steps += batch % 2
        assert logged == {}
        callback.on_train_batch_end(trainer, module, None, None, batch)
    seconds = 4.0 if kind == "cuda" else 2.0
    assert logged["perf/images_per_s"] == 16 / seconds and logged["perf/tokens_per_s"] == 64 / seconds
    assert logged.get("perf/mfu") == (16 / seconds / 2 if kind == "cuda" else None)
    assert logged["train/learning_rate"] == 0.5
