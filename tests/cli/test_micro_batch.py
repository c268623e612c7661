"""`data.max_device_batch_size: auto`: the choice by device, its record, and the run that continues."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY
from integration.tiny import Experiment, write_experiment

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.build.micro_batch import automatic_micro_batch, saved_bytes, training_bytes
from aim_lightning.models import GPT, AiM, AiMConfig, GPTConfig
from aim_lightning.models.aim.backends import choose as choose_module
from aim_lightning.runs.directory import newest_checkpoint

pytestmark = pytest.mark.usefixtures("own_signals")
AUTO = ("--data.max_device_batch_size", "auto")


def choose(preset: str, backend: str = "auto", share: int = 2048, previous: int | None = None, **options):
    """Choose for a published network and the GPU that the present machine lacks."""
    with torch.device("meta"):
        module = SimpleNamespace(network=AiM(AiMConfig.preset(preset, **options), backend))
    return automatic_micro_batch(module, "bf16-mixed", torch.device("cuda"), share, previous)


@pytest.fixture
def gpu(monkeypatch):
    """Pretend to have a GPU of 40 GB that our kernels support."""
    properties = SimpleNamespace(name="NVIDIA A100-PCIE-40GB", total_memory=40 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(choose_module, "launcher_fault", lambda device: None)


def test_a_missing_gpu_is_assumed_to_have_80_gb():
    size, note = choose("AiM-XL")
    assert size == 128
    assert note == (
        "micro-batch: 128 images per device (auto: about 66.2 of 80.0 GB on an assumed GPU of 80 GB, backend triton)"
    )
    assert choose("AiM-XL", "torch")[0] == 16


def test_the_memory_of_the_gpu_and_the_backend_count(gpu):
    pytest.importorskip("triton")
    assert choose("AiM-XL")[0] == 32
    # Our kernels have no dropout, and mamba-ssm is not installed here.
    size, note = choose("AiM-XL", mixer_dropout=0.1)
    assert size == 4 and "NVIDIA A100-PCIE-40GB, backend torch" in note
    assert choose("AiM-B", share=96)[0] == 96


def test_the_limit_of_the_process_counts(gpu, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.6)
    size, note = choose("AiM-XL")
    assert size == 8 and "of 24.0 GB on NVIDIA A100-PCIE-40GB" in note


def test_a_continued_run_keeps_its_micro_batch(gpu):
    pytest.importorskip("triton")
    size, note = choose("AiM-XL", previous=128)
    assert size == 128 and "kept from the checkpoint; for a new run auto would take 32: about" in note
    size, note = choose("AiM-XL", share=64, previous=128)  # more devices
    assert size == 64
    assert choose("AiM-XL", previous=32)[1] == "micro-batch: 32 images per device (auto: kept from the checkpoint)"


def test_other_devices_and_networks_take_the_whole_share():
    for network, device in ((AiM(TINY), "cpu"), (torch.nn.Linear(1, 1), "cuda")):
        module = SimpleNamespace(network=network)
        size, note = automatic_micro_batch(module, "32-true", torch.device(device), 512)
        assert size == 512 and note.endswith("(auto: the whole share of a rank)")


def test_the_choice_is_printed_recorded_and_kept(tmp_path, capfd):
    experiment = Experiment(write_experiment(tmp_path))
    constant = ("--model.optimizer.schedule", "constant", "--trainer.max_steps")
    run_dir = experiment.fit("run", *AUTO, *constant, 4)
    line = "micro-batch: 8 images per device (auto: the whole share of a rank)"
    assert line in capfd.readouterr().out.splitlines()
    experiment.fit("run", "--data.max_device_batch_size", 2, *constant, 5)
    capfd.readouterr()
    experiment.fit("run", *AUTO, *constant, 6)
    kept = "micro-batch: 2 images per device (auto: kept from the checkpoint; for a new run auto would take 8: "
    assert kept + "the whole share of a rank)" in capfd.readouterr().out.splitlines()
    assert read_checkpoint(newest_checkpoint(run_dir))["data"]["micro_batch_size"] == 2
    notes = [json.loads(text)["notes"] for text in (run_dir / "history.jsonl").read_text().splitlines()]
    assert notes[0] == [line] and notes[1] == [] and notes[2][0].startswith(kept)


def gpt(n_layer: int, checkpointing: str = "none") -> GPT:
    sizes = {"d_model": 64, "n_head": 4, "vocab_size": 32, "num_classes": 10, "num_tokens": 16}
    with torch.device("meta"):
        return GPT(GPTConfig(n_layer=n_layer, **sizes), "auto", checkpointing)


def test_the_activations_of_any_network_are_counted():
    per_layer = saved_bytes(gpt(2)) - saved_bytes(gpt(1))
    residual = 4 * 16 * 64
    assert saved_bytes(gpt(3)) == saved_bytes(gpt(2)) + per_layer and per_layer > 10 * residual
    assert saved_bytes(gpt(3, "blocks")) - saved_bytes(gpt(2, "blocks")) == residual, "the input of the block alone"
    module = SimpleNamespace(network=gpt(2), global_batch_size=64)
    state = 20 * sum(parameter.numel() for parameter in module.network.parameters())
    assert training_bytes(module, "auto") == 64 * saved_bytes(module.network) + state
    assert training_bytes(module, 8) == 8 * saved_bytes(module.network) + state
    assert training_bytes(SimpleNamespace(network=torch.nn.Linear(1, 1), global_batch_size=8), None) is None
