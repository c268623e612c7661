"""Real trainings with CSVLogger and WandbLogger next to TensorBoard; W&B is offline, and its own files are read."""

import csv
import json
import os
import signal
import struct
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, start_python
from integration.tiny import Experiment, scalars, write_config
from PIL import Image

from aim_lightning.runs.directory import list_checkpoints, newest_checkpoint, step_of

pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
pytestmark = pytest.mark.long
BLOCK, HEADER = 1 << 15, 7  # bytes of W&B's file: of a block, and of the header of the file and of a record
LAST_OF_RECORD = (1, 4)


def records(directory: Path):
    """Yield the records of W&B's offline file, which has the format of LevelDB's log."""
    (file,) = directory.glob("run-*.wandb")
    data, position, content = file.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        if (room := BLOCK - position % BLOCK) < HEADER:
            position += room
            continue
        length, record_type = struct.unpack_from("<4xHB", data, position)
        position += HEADER + length
        content += data[position - length : position]
        if record_type in LAST_OF_RECORD:
            record, content = pb.Record.FromString(content), b""
            yield record


def history(directory: Path) -> list[dict]:
    """Return the logged rows; keys of media are joined by dots."""
    rows = [record.history.item for record in records(directory) if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def wait_for_checkpoint(run_dir: Path, process) -> None:
    deadline = time.monotonic() + 120
    while not any(step_of(path) >= 3 for path in list_checkpoints(run_dir)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def child_processes(pid: int) -> list[int]:
    return [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the output of a training that SIGTERM stops, that of its continuation, its directory and both steps."""
    root = tmp_path_factory.mktemp("loggers")
    tiny = write_config(root, "tiny_tokenizer")
    files = [tiny.name, *(str(ROOT / "configs" / "logger" / name) for name in ("csv.yaml", "wandb.yaml"))]
    tiny.with_name("logged.yaml").write_text(json.dumps({"include": files}))
    experiment = Experiment(root / "logged.yaml")
    directory, options = root / "runs" / "tiny_tokenizer" / "a", ("--model.optimizer.schedule", "constant")
    words = ("-m", "aim_lightning", *experiment.words("fit", "a", *options))
    outputs = []
    process = start_python(*words, "--trainer.max_steps", 10000, WANDB_MODE="offline")
    wait_for_checkpoint(directory, process)
    # As SLURM does, to all processes of a job: W&B's service ends before the training does.
    services = child_processes(process.pid)
    for pid in (*services, process.pid):
        os.kill(pid, signal.SIGTERM)
    outputs.append(process.communicate(timeout=120)[0])
    assert services and process.returncode == 128 + signal.SIGTERM, outputs
    step = step_of(newest_checkpoint(directory))
    process = start_python(*words, "--trainer.max_steps", step + 4, WANDB_MODE="offline")
    outputs.append(process.communicate(timeout=120)[0])
    assert process.returncode == 0, outputs
    return outputs, directory, step


def test_a_training_survives_the_end_of_the_wandb_service(run):
    (stopped, continued), _, step = run
    assert f"stopped by SIGTERM, step {step} is in a checkpoint" in stopped and f"from step {step} " in continued
    assert stopped.count("warning: WandbLogger failed") == 1 and "warning: WandbLogger" not in continued
    assert "Traceback" not in stopped + continued


def test_a_continued_run_keeps_its_wandb_id(run):
    _, directory, _ = run
    id = (directory / "wandb_id.txt").read_text().strip()
    starts = sorted((directory / "wandb").glob("offline-run-*"))
    assert len(starts) == 2 and all(start.name.endswith(f"-{id}") for start in starts)
    # The file of the first start lacks what W&B's service had not written when it was stopped.
    (record,) = [record.run for record in records(starts[-1]) if record.WhichOneof("record_type") == "run"]
    assert (record.run_id, record.project, record.display_name) == (id, "aim_lightning", "tiny_tokenizer/a")


def test_wandb_has_scalars_images_and_configuration(run):
    _, directory, step = run
    start = max((directory / "wandb").glob("offline-run-*"))
    rows = history(start)
    assert sorted({row["trainer/global_step"] for row in rows}) == list(range(step + 1, step + 5))
    logged = {name: (row["trainer/global_step"], row[name]) for row in rows for name in row}
    curves = scalars(directory)
    for name in ("train/loss", "train/psnr", "val/psnr"):
        assert logged[name] == curves[name][-1], name
    assert logged["reconstructions._type"][1] == "images/separated"
    (file,) = logged["reconstructions.filenames"][1]
    with Image.open(start / "files" / file) as image, Image.open(directory / "samples/reconstructions.png") as expected:
        assert image.tobytes() == expected.tobytes()
    configuration = yaml.safe_load((directory / "config.yaml").read_text())
    updates = [record.config.update for record in records(start) if record.WhichOneof("record_type") == "config"]
    assert {item.key: json.loads(item.value_json) for update in updates for item in update} == configuration


def test_csv_has_scalars_images_and_configuration(run):
    _, directory, step = run
    curves, rows = scalars(directory), []
    for version in (0, 1):
        start = directory / "csv" / f"version_{version}"
        rows += csv.DictReader((start / "metrics.csv").read_text().splitlines())
        assert yaml.safe_load((start / "hparams.yaml").read_text())["experiment"] == "tiny_tokenizer"
    for name in ("train/loss", "val/psnr"):
        values = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        assert values == [(step, pytest.approx(value)) for step, value in curves[name]], name
    images = sorted((directory / "csv" / "version_1" / "images").iterdir())
    steps = [last for last, _ in curves["val/psnr"] if last > step]
    assert [image.name for image in images] == [f"reconstructions-step={last:08d}.png" for last in steps]
