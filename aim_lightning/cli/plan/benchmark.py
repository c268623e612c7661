"""Measure a few real steps of a configured training on one device, and the speed of the run's disk."""

import copy
import dataclasses
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.cli.build.trainer_cli import AimCLI
from aim_lightning.cli.config import Config
from aim_lightning.config.signature import dataclass_of, find_class, parameters
from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.tokens.format.manifest import TokenManifest, TokenShard
from aim_lightning.data.tokens.format.record_format import write_shard
from aim_lightning.utils.files import sha256_file

WARM_UP = 3  # steps that compile, tune and allocate
PROBE_BYTES = 256 << 20  # written to measure the speed of the run's directory


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Seconds per micro-batch, its rows, and the peak memory in bytes of the device or, on a CPU, of the process."""

    seconds: float
    rows: int
    peak_bytes: int
    device: str


class Stopwatch(Callback):
    """Record the times at which batches end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # kernels run asynchronously: without it only their launch is measured
        self.times.append(time.perf_counter())


def measure(config: Config, batch: BatchPlan, steps: int, simulate: bool) -> Measurement:
    """Train for some steps in a temporary directory, without touching the run.

    Args:
        config: of the training.
        batch: its division over devices. One micro-batch on one device is measured.
        steps: measured, after three to warm up.
        simulate: True to write random codes instead of reading the configured data.
    """
    watch = Stopwatch()
    cli = train_briefly(config, batch, WARM_UP + steps, simulate, watch)
    device, seconds = cli.trainer.strategy.root_device, statistics.median(np.diff(watch.times)[WARM_UP - 1 :])
    peak, name = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "CPU"
    if device.type == "cuda":
        peak, name = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
    return Measurement(seconds, batch.micro_batch_size, peak, name)


def train_briefly(config: Config, batch: BatchPlan, steps: int, simulate: bool, callback: Callback) -> AimCLI:
    """Train one device with one micro-batch per step in a temporary directory, and return what was trained.

    Args:
        config: of the training.
        batch: its division over devices; its micro-batches become the steps.
        steps: optimizer steps.
        simulate: True to write random codes instead of reading the configured data.
        callback: follows the training.
    """
    values = copy.deepcopy(config.values)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        _shrink(values, batch.micro_batch_size, steps, directory)
        if batch.world_size > 1 and config.class_name("model") == "AiMModule":
            values["model"]["init_args"]["cuda_graph"] = False  # several devices train without it
        if simulate:
            values["data"]["init_args"]["path"] = str(directory / "tokens")
            model = values["model"]
            option = parameters(find_class(model["class_path"], "model"))["network"]
            network = dataclass_of(option.annotation)(**model["init_args"]["network"])
            for split in ("train", "val"):
                _simulate(directory / "tokens" / split, network, batch.micro_batch_size * (steps + 1))
        cli = AimCLI(dataclasses.replace(config, values=values))
        cli.datamodule.plan_for(1)
        cli.trainer.callbacks.append(callback)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli


def _shrink(values: dict, rows: int, steps: int, directory: Path) -> None:
    """Set one device and one micro-batch per step, without validation and without files in the run."""
    ema = (values["callbacks"] or {}).get("ema")
    values |= {"runs_root": str(directory / "runs"), "logger": {}, "tokenizer": None}
    values["callbacks"] = {"ema": ema} if ema else {}
    values["data"]["init_args"] |= {"global_batch_size": rows, "max_device_batch_size": None}
    trainer = values["trainer"]
    for name in ("strategy", "val_check_interval", "check_val_every_n_epoch"):
        trainer.pop(name, None)
    trainer |= {"devices": 1, "num_nodes": 1, "max_steps": steps, "max_epochs": -1, "log_every_n_steps": 10**6}
    trainer |= dict.fromkeys(("limit_val_batches", "num_sanity_val_steps"), 0)
    trainer |= dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)


def _simulate(directory: Path, network: Any, rows: int) -> None:
    """Write token shards of random codes that fit the network."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, network.vocab_size, (rows, 1, network.num_tokens)).astype(np.uint16)
    path = directory / "tokens-000000.tar"
    write_shard(path, codes, rng.integers(0, network.num_classes, rows), list(map(str, range(rows))))
    shards = [TokenShard(path.name, rows, sha256_file(path))]
    names = [f"class{label}" for label in range(network.num_classes)]
    TokenManifest((1, network.num_tokens), network.vocab_size, names, 1, "none", "simulated", shards).save(directory)


def checkpoint_seconds(directory: Path, size: int) -> tuple[float, str]:
    """Measure the disk; return the seconds to write and read a checkpoint, and the speed as text.

    Args:
        directory: of the runs; its nearest existing parent is measured.
        size: of the checkpoint, bytes.
    """
    while not directory.exists():
        directory = directory.parent
    blocks, block = max(min(size, PROBE_BYTES) >> 20, 1), os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".plan-") as file:
        start = time.perf_counter()
        file.writelines([block] * blocks)
        file.flush()
        os.fsync(file.fileno())  # else the page cache is measured
        rate = blocks * len(block) / (time.perf_counter() - start)
    return 2 * size / rate, f"{rate / 1e6:,.0f} MB/s here, written and read back"
