"""`aim-lightning plan`: what a training will need, before it is submitted."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_lightning.cli.config import Config
from aim_lightning.cluster.options import ClusterOptions
from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.tokens.format.manifest import Location, TokenManifest
from aim_lightning.runs.training_estimate import Training
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from aim_lightning.cli.plan.benchmark import Measured

HELP = "estimate memory, time, disk and the requeue window of a training"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--devices", type=int, help="number of all devices (default: trainer.devices x num_nodes)")
    rate = "images per second on all devices; with it nothing is measured"
    parser.add_argument("--images_per_s", type=float, metavar="NUMBER", help=rate)
    parser.add_argument("--steps", type=int, default=8, help="steps to measure on one device, 0 = none (default: 8)")
    parser.add_argument("--rows", type=int, help="training images, if the data do not exist yet")
    parser.add_argument(
        "--views", type=int, default=1, help="views per image of shards that do not exist yet (default: 1)"
    )


PROBE_BYTES = 256 << 20  # written to see how fast the run's directory is


def run(document: Config, options: argparse.Namespace) -> int:
    """Print the estimate; exit code 0."""
    from aim_lightning.cli.build.trainer_cli import quiet, run_directory
    from aim_lightning.cli.plan.report import disk_lines, memory_lines, size_lines, time_lines, window_lines

    quiet()
    values = document.values
    tokens = _token_facts(values)
    devices = _devices(values["trainer"], options.devices)
    sizes = (_data(values, "global_batch_size", 256), devices, _data(values, "max_device_batch_size", None))
    batch, module = BatchPlan.make(*sizes), _module(values)
    training = _training(values, module, batch, _rows(document, tokens, options.rows))
    measured = _measured(document, batch, tokens, options)
    rate = options.images_per_s or (measured.rows / measured.seconds * devices if measured else None)
    lines = [*size_lines(training, batch), *memory_lines(training, measured), *time_lines(training, rate, measured)]
    lines += disk_lines(training, module.network, tokens, options.views)
    lead = ClusterOptions(**values["cluster"]).signal_lead
    lines += window_lines(training, rate, lead, *_pauses(document, training, rate))
    print(f"plan of {run_directory(document).path}")
    for name, text in lines:
        print(f"  {name:22s}{text}")
    return 0


def _data(values: dict, name: str, default: Any) -> Any:
    return (values["data"].get("init_args") or {}).get(name, default)


def _token_facts(values: dict) -> TokenManifest | None:
    """Manifest of the token shards, where they are on a disk already."""
    path = _data(values, "path", None)
    if path is None or Location(path).is_remote or not (Path(path) / "train" / "manifest.json").exists():
        return None
    return TokenManifest.load(Path(path) / "train")


def _devices(trainer: dict, given: int | None) -> int:
    import torch

    if given:
        return given
    each, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if isinstance(each, int) and each > 0:
        return each * nodes
    return max(torch.cuda.device_count(), 1) * nodes


def _rows(document: Config, tokens: TokenManifest | None, given: int | None) -> int:
    """Images in the training set."""
    if given or tokens:
        return given or tokens.rows
    images = document.values.get("images") or {}
    if not images.get("train") or not Path(images["train"]).is_dir():
        raise UserError("plan does not know how many images there are: the data are not there yet; give --rows NUMBER")
    from aim_lightning.data.images.dataset import Images

    return len(Images(**images).open("train"))


def _module(values: dict) -> LightningModule:
    """The configured module without memory for its weights."""
    import torch
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    parsed = parser.parse_object({"model": values["model"]})
    with torch.device("meta"):
        return parser.instantiate_classes(parsed).model


def _training(values: dict, module: LightningModule, batch: BatchPlan, rows: int) -> Training:
    trainer, callbacks = values["trainer"], values["callbacks"]
    policy = ((callbacks.get("checkpoints") or {}).get("init_args")) or {}
    ends = [trainer["max_steps"]] if (trainer.get("max_steps") or -1) >= 0 else []
    if (trainer.get("max_epochs") or -1) >= 0:
        ends.append(trainer["max_epochs"] * batch.batches_per_epoch(rows))
    if not ends:
        raise UserError("the training has no end: set trainer.max_steps or trainer.max_epochs")
    return Training(
        trained=sum(p.numel() for p in module.parameters() if p.requires_grad),
        averaged=sum(p.numel() for p in module.network.parameters()) if callbacks.get("ema") else 0,
        rows=rows,
        global_batch_size=batch.global_batch_size,
        devices=batch.world_size,
        steps=min(ends),
        kept_checkpoints=policy.get("keep_last", 2) + policy.get("keep_best", 0) + _kept_by_evaluation(callbacks),
        every_n_steps=policy.get("every_n_steps", 1000),
        every_n_minutes=policy.get("every_n_minutes"),
    )


def _kept_by_evaluation(callbacks: dict[str, Any]) -> int:
    """Checkpoints in `best/`, of evaluations during training."""
    found = [one for one in callbacks.values() if one and one["class_path"].endswith("TrainingEvaluation")]
    return sum((one.get("init_args") or {}).get("keep_best", 1) for one in found)


def _measured(
    document: Config, batch: BatchPlan, tokens: TokenManifest | None, options: argparse.Namespace
) -> Measured | None:
    """A few steps on one device, unless the speed is given or the device is not here."""
    import torch

    from aim_lightning.cli.plan.benchmark import measure

    if options.images_per_s or not options.steps:
        return None
    if document.values["trainer"].get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        return None
    is_tokens = document.values["data"]["class_path"].endswith(".TokenDataModule")
    with tempfile.TemporaryDirectory() as directory:
        simulate = is_tokens and tokens is None
        return measure(document, batch.micro_batch_size, options.steps, Path(directory), simulate)


def _pauses(document: Config, training: Training, rate: float | None) -> tuple[float, str, float | None, float]:
    """Seconds for a checkpoint, where they are from, seconds to a batch boundary, and for a step until ranks agree."""
    from aim_lightning.cli.build.trainer_cli import run_directory

    timings = run_directory(document).path / "timings.json"
    known = read_json(timings, "timings") if timings.exists() else {}
    save, how = known.get("checkpoint_seconds"), "measured in this run"
    if save is None:
        save, how = _save_seconds(Path(document.values["runs_root"]), training.checkpoint_bytes)
    expected = training.step_seconds(rate) if rate else None
    pause, step = known.get("longest_pause_seconds", expected), known.get("step_seconds", expected)
    return save, how, pause, (step or 0.0) if training.devices > 1 else 0.0


def _save_seconds(directory: Path, size: int) -> tuple[float, str]:
    """Writing and reading back a checkpoint, from the speed of the disk that the run will be on."""
    while not directory.exists():
        directory = directory.parent
    probe, block = min(size, PROBE_BYTES), os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".plan-") as file:
        start = time.perf_counter()
        for _ in range(max(probe >> 20, 1)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        rate = max(probe, 1 << 20) / (time.perf_counter() - start)
    return 2 * size / rate, f"{rate / 1e6:,.0f} MB/s here, written and read back"
