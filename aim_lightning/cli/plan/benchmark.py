"""A few real steps of a configured training, on one device, on simulated codes where there are none yet."""

import copy
import dataclasses
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.cli.build.trainer_cli import AimCLI
from aim_lightning.cli.config import Config
from aim_lightning.data.tokens.format.manifest import TokenManifest, TokenShard
from aim_lightning.data.tokens.format.record_format import Record, write_shard
from aim_lightning.models import AiMConfig
from aim_lightning.utils.files import sha256_file

WARM_UP = 3  # steps that compile, tune and allocate


@dataclass(frozen=True)
class Measured:
    """Seconds a micro-batch, its rows, and the most memory of the device in bytes (of the process on a CPU)."""

    seconds: float
    rows: int
    peak_bytes: int
    device: str


class Stopwatch(Callback):
    """Moments at which batches were done."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.moments.append(time.perf_counter())


def measure(document: Config, micro_batch_size: int, steps: int, directory: Path, simulate: bool) -> Measured:
    """Train for so many steps in `directory`; nothing of the run itself is touched.

    Args:
        document: the configuration.
        micro_batch_size: rows that the device takes at once.
        steps: measured, after three to warm up.
        directory: temporary.
        simulate: write codes at random instead of reading the configured data.
    """
    values = copy.deepcopy(document.values)
    _shrink(values, micro_batch_size, WARM_UP + steps, directory)
    if simulate:
        values["data"]["init_args"]["path"] = str(directory / "tokens")
        network = values["model"]["init_args"]["network"]
        for split in ("train", "val"):
            _simulate(directory / "tokens" / split, network, micro_batch_size * (WARM_UP + steps + 1))
    cli = AimCLI(dataclasses.replace(document, values=values))
    cli.datamodule.plan_for(1)
    watch = Stopwatch()
    cli.trainer.callbacks.append(watch)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    device = cli.trainer.strategy.root_device
    durations = np.diff(watch.moments)[WARM_UP - 1 :]
    return Measured(statistics.median(durations), micro_batch_size, _peak(device), _name(device))


def _shrink(values: dict, rows: int, steps: int, directory: Path) -> None:
    """One device, one micro-batch a step, nothing written to the run, no validation."""
    values |= {"runs_root": str(directory / "runs"), "logger": {}, "tokenizer": None}
    ema = (values["callbacks"] or {}).get("ema")
    values["callbacks"] = {"ema": ema} if ema else {}
    values["data"]["init_args"] |= {"global_batch_size": rows, "max_device_batch_size": None}
    given = values["trainer"]
    given |= {"devices": 1, "num_nodes": 1, "max_steps": steps, "max_epochs": -1, "limit_val_batches": 0}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 10**6}
    given |= {"val_check_interval": None, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    given.pop("strategy", None)
    for name in ("val_check_interval", "check_val_every_n_epoch"):
        given.pop(name)


def _simulate(directory: Path, network: dict, rows: int) -> None:
    """Token shards of random codes that fit the network."""
    config = AiMConfig(**network)
    tokens, classes = config.num_tokens, config.num_classes
    rng = np.random.default_rng(0)
    codes = rng.integers(0, config.vocab_size, (rows, 1, tokens)).astype(np.uint16)
    path = directory / "tokens-000000.tar"
    write_shard(path, Record(codes, rng.integers(0, classes, rows), [str(row) for row in range(rows)]))
    shards = [TokenShard(path.name, rows, sha256_file(path))]
    names = [f"class{label}" for label in range(classes)]
    TokenManifest((1, tokens), config.vocab_size, names, 1, "none", "simulated", shards).save(directory)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
