"""`profile`: trace and table of a few steps, without touching the run."""

import csv
import errno
import gzip
import json
import os
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from integration.tiny import Experiment, write_experiment

from aim_lightning.cli.commands.profile import COLUMNS, LISTED, kernel_table
from aim_lightning.cli.main import main


@pytest.mark.slow
def test_trace_and_table_of_a_training(tmp_path):
    experiment = Experiment(write_experiment(tmp_path))
    result = experiment.process("profile", "main", "--steps", 3)  # 8 steps in epochs of 7
    assert result.returncode == 0, result.stdout
    total = re.search(r"3 steps of 8 images on one CPU\n.* step with the profiler, ([\d.]+) ms in", result.stdout)
    assert total, result.stdout
    assert [path.name for path in (experiment.runs / "main").iterdir()] == ["profile"]
    directory = experiment.runs / "main" / "profile"
    (trace,) = directory.glob("*.pt.trace.json.gz")
    assert f"trace: {trace} " in result.stdout
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert len({event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}) == 3
    header, *rows = csv.reader((directory / "kernels.csv").open(encoding="utf-8"))
    assert header == list(COLUMNS) and len(rows) == LISTED
    times, shares = ([float(row[column]) for row in rows] for column in (2, 3))
    # A busy machine interrupts any operator, so which ones are the most expensive is not fixed.
    assert times == sorted(times, reverse=True)
    assert shares == pytest.approx([time / float(total[1]) for time in times], rel=0.05)
    launches = Counter(event["name"] for event in events if event.get("cat") == "cpu_op")
    assert LISTED / len(launches) <= sum(shares) < 1
    # The table counts an operator that only calls its own overload once.
    assert all(0 < float(row[1]) * 3 <= launches[row[0]] + 0.01 for row in rows)


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path, fail, monkeypatch, capsys):
    experiment = Experiment(write_experiment(tmp_path))
    words, directory = experiment.words("profile", "main", "--steps", 1), experiment.runs / "main" / "profile"
    directory.parent.mkdir(parents=True)
    directory.touch()
    assert f"{directory} cannot be used" in fail(*words)
    directory.unlink()

    def handler(*_, **__):
        def write(tracer):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return write

    monkeypatch.setattr(torch.profiler, "tensorboard_trace_handler", handler)
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: {directory} could not be written (No space left on device); give another place"


def test_on_a_gpu_only_kernels_count():
    def event(key, kind, count, microseconds, annotation=False):
        device_type = getattr(torch.autograd.DeviceType, kind)
        return SimpleNamespace(
            key=key,
            device_type=device_type,
            count=count,
            self_device_time_total=microseconds,
            is_user_annotation=annotation,
        )

    events = [
        event("aten::mm", "CPU", 8, 6000),
        event("scan", "CUDA", 4, 2000),
        event("gemm", "CUDA", 8, 6000),
        event("ProfilerStep#1", "CUDA", 1, 9000, annotation=True),
    ]
    table, total = kernel_table(SimpleNamespace(key_averages=lambda: events), 2, "cuda")
    assert table == [("gemm", 4.0, 3.0, 0.75), ("scan", 2.0, 1.0, 0.25)] and total == 4.0
