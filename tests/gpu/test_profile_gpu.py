"""`profile` on an NVIDIA GPU: the table lists kernels, also those of Triton."""

import csv

import pytest
from integration.tiny import Experiment, write_experiment

pytestmark = pytest.mark.gpu
OPTIONS = ("--trainer.accelerator", "gpu", "--trainer.precision", "bf16-mixed", "--model.backend", "triton")
PLAIN = ("--model.network.token_dropout", 0, "--model.network.mixer_dropout", 0)


def test_table_lists_kernels(tmp_path):
    experiment = Experiment(write_experiment(tmp_path))
    result = experiment.process("profile", "main", *OPTIONS, *PLAIN)
    assert result.returncode == 0 and "ms in kernels" in result.stdout, result.stdout
    directory = experiment.runs / "main" / "profile"
    assert len(list(directory.glob("*.pt.trace.json.gz"))) == 1
    _, *rows = csv.reader((directory / "kernels.csv").open(encoding="utf-8"))
    names = [row[0] for row in rows]
    assert "norm_backward" in names and not any(name.startswith(("aten::", "ProfilerStep")) for name in names)
    assert all(float(row[1]) >= 1 for row in rows if row[0] == "norm_backward")
