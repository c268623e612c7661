"""results.json with the origin of each metric, the history of starts, and the arithmetic of `plan`."""

import datetime
import json
import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import assert_user_error

from aim_lightning.cluster import job_registry
from aim_lightning.runs import results
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.history import append_start
from aim_lightning.runs.results import commit, hardware, record, recorded_step
from aim_lightning.runs.resume_policy import Decision
from aim_lightning.runs.training_estimate import Training, shard_bytes


@pytest.fixture
def directory(tmp_path):
    return RunDirectory("e", "r", tmp_path)


def write(directory, source, at, metrics, **facts):
    return record(directory, source, at, facts, metrics, "1 x GPU")


def sources(content):
    """Return the source of every metric, each of which has exactly one."""
    entries = {source: entry for source, entry in content["protocol"].items() if source != "step"}
    pairs = [(name, source) for source, entry in entries.items() for name in entry["metrics"]]
    assert sorted(name for name, _ in pairs) == sorted(content["metrics"])
    return dict(pairs)


def test_two_evaluations_keep_their_own_protocols(directory):
    write(directory, "evaluate_fid_10k", 9, {"fid_10k": 8.0}, cfg_scale=1.5)
    content = write(directory, "evaluate_fid_50k", 9, {"fid_50k": 4.0}, cfg_scale=3)
    assert content == json.loads(directory.results.read_text())
    assert sources(content) == {"fid_10k": "evaluate_fid_10k", "fid_50k": "evaluate_fid_50k"}
    assert [content["protocol"][f"evaluate_fid_{n}"]["cfg_scale"] for n in ("10k", "50k")] == [1.5, 3]
    assert content["protocol"]["evaluate_fid_10k"]["hardware"] == "1 x GPU"
    again = write(directory, "evaluate_fid_10k", 9, {"fid_10k": 7.0}, cfg_scale=2)
    assert again["metrics"] == {"fid_10k": 7.0, "fid_50k": 4.0}
    assert again["protocol"]["evaluate_fid_10k"]["cfg_scale"] == 2


def test_a_name_belongs_to_its_last_writer(directory):
    write(directory, "fit", 9, {"val/loss": 3.0, "val/accuracy": 0.1}, step=6)
    content = write(directory, "validate", 9, {"val/loss": 2.0})
    assert sources(content) == {"val/accuracy": "fit", "val/loss": "validate"}
    assert content["protocol"]["fit"]["step"] == 6  # of the validation; the run is at 9
    content = write(directory, "validate", 9, {"val/loss": 2.0, "val/accuracy": 0.2})
    assert set(content["protocol"]) == {"step", "validate"}
    content = write(directory, "validate", 9, {"val/loss": 1.0})  # earlier metrics of the same source are dropped too
    assert content["metrics"] == {"val/loss": 1.0} and sources(content)


def test_metrics_of_another_step_are_dropped(directory):
    assert recorded_step(directory) is None
    write(directory, "validate", 400, {"fd_2k": 10.0, "val/loss": 3.0})
    assert recorded_step(directory) == 400
    content = write(directory, "fit", 850, {"val/loss": 2.0})
    assert content["metrics"] == {"val/loss": 2.0} and recorded_step(directory) == 850
    directory.results.write_text(json.dumps({"protocol": {"steps": 850}, "metrics": {"fd_2k": 1.0}}))  # without a step
    assert write(directory, "fit", 850, {"val/loss": 2.0})["metrics"] == {"val/loss": 2.0}
    directory.results.write_text("{")
    assert_user_error("not readable JSON", recorded_step, directory)


def test_the_commit_of_the_environment_comes_before_that_of_git(monkeypatch):
    monkeypatch.delenv("AIM_COMMIT", raising=False)
    assert commit() not in ("unknown", "abc123")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # git starts and fails
    assert commit() == "unknown"
    monkeypatch.setattr(results.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError))  # no git
    assert commit() == "unknown"
    monkeypatch.setenv("AIM_COMMIT", "abc123")
    assert commit() == "abc123"


def test_hardware_names_the_devices_in_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert hardware(torch.device("cuda", 3)) == "1 x GPU 3"
    assert hardware(torch.device("cuda", 0), 4) == "4 x GPU 0"
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    text = hardware(torch.device("cpu"))
    assert text.startswith(f"CPU {model[1] if model else ''}") and text.endswith(" threads")
    assert hardware(torch.device("cpu"), 2).startswith("2 processes, CPU ")


def test_a_start_is_one_line_of_the_history(directory, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("AIM_COMMIT", "abc")
    append_start(directory, Decision("fresh"))
    change, note = "trainer.devices was 1, is 2", "ignoring damaged checkpoint: ü"
    notes = [note, f"changed since this run started: {change}"]
    append_start(directory, Decision("continue", Path("checkpoints/step=00000009.ckpt"), 9, notes, [change]))
    text = directory.history.read_text(encoding="utf-8")
    first, second = (json.loads(line) for line in text.splitlines())
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(second.pop("time"))
    assert "ü" in text and abs(age.total_seconds()) < 60
    process = {"host": socket.gethostname(), "pid": os.getpid(), "job": "12", "commit": "abc"}
    decision = {"action": "continue", "step": 9, "checkpoint": "step=00000009.ckpt"}
    assert second == process | decision | {"changes": [change], "notes": [note]}  # a change is not repeated as a note
    assert (first["action"], first["step"], first["checkpoint"], first["changes"]) == ("fresh", 0, None, [])


AIM_B = Training(
    trained=147_622_080,
    averaged=147_622_080,
    rows=1_281_167,
    global_batch_size=2048,
    devices=8,
    steps=187_500,
    kept_checkpoints=2,
    every_n_steps=1000,
    every_n_minutes=None,
)


def test_memory_and_disk():
    assert AIM_B.state_bytes == 147_622_080 * 20  # float32 weights, gradients, two moments, average
    assert AIM_B.checkpoint_bytes == 147_622_080 * 16
    assert AIM_B.checkpoints_bytes == 3 * AIM_B.checkpoint_bytes
    assert shard_bytes(1_281_167, 10, 256) == 1_281_167 * 5148


def test_time():
    hours = 187_500 * 2048 / 1000 / 3600
    assert AIM_B.remaining(1000) == (hours, False)
    assert AIM_B.remaining(1000, step=93_750) == (hours / 2, False) and AIM_B.remaining(1000, 10**6) == (0, False)
    limited = replace(AIM_B, max_seconds=7200)
    assert limited.remaining(1000, 1, seconds=5400) == (0.5, True) == limited.remaining(None, seconds=5400)
    assert limited.remaining(1000, seconds=9000) == (0, True) and limited.remaining(1e6)[1] is False
    assert AIM_B.lost_seconds(1024) == 2000
    both = replace(AIM_B, every_n_minutes=15)
    assert both.lost_seconds(1024) == 900 and both.lost_seconds(1e6) < 900
    assert replace(both, every_n_steps=None).lost_seconds(1e9) == 900


@pytest.mark.parametrize("content", ["[]", '{"protocol": 1, "metrics": {}}'])
def test_records_of_others_are_refused(directory, content):
    directory.path.mkdir(parents=True)
    directory.results.write_text(content)
    assert_user_error("results.json was not written by this project", write, directory, "fit", 1, {})
    (directory.path / "timings.json").write_text("[1]")
    assert_user_error("timings.json was not written by this project", job_registry.read_timings, directory.path)
