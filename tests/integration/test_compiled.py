"""`model.compile` on a CPU: the same training, the same names."""

import shutil

import pytest
import torch
from integration.tiny import write_experiment

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.main import main
from aim_lightning.runs.directory import newest_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
]


def train(root, experiment, run, compiled):
    sizes = ("--model.network.n_layer", 1, "--trainer.max_steps", 2, "--trainer.limit_val_batches", 0)
    no_dropout = ("--model.network.token_dropout", 0, "--model.network.mixer_dropout", 0)  # drawn otherwise
    options = ("--config", experiment, "--run", run, "--model.compile", compiled, *sizes, *no_dropout)
    assert main([str(word) for word in ("fit", *options)]) == 0
    return read_checkpoint(newest_checkpoint(root / "runs" / "tiny" / run))["network"]


@pytest.mark.long
def test_compiled_training_is_the_same(tmp_path, own_signals):
    experiment = write_experiment(tmp_path)
    frames = torch._dynamo.utils.counters["frames"]
    before = frames["ok"]
    plain = train(tmp_path, experiment, "plain", "false")
    assert frames["ok"] == before
    compiled = train(tmp_path, experiment, "compiled", "true")
    assert frames["ok"] > before
    assert compiled.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.allclose(compiled[name], value, rtol=1e-3, atol=1e-4), name
