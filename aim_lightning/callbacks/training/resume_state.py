"""Save and restore the state that makes a resumed run exact: cursor, random states of all ranks, replaced rows."""

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import CheckpointIO

from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.checkpoint.io import read_checkpoint, write_checkpoint
from aim_lightning.runs.resume_policy import differences
from aim_lightning.utils import lightning_private
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import log
from aim_lightning.utils.random import hash_seed
from aim_lightning.utils.short_key import short_key

# key in the file -> Lightning's key
KEYS = {"optimizers": "optimizer_states", "schedulers": "lr_schedulers"} | {
    name: name for name in ("cursor", "data", "random_state", "configuration", "class_names", "tokenizer_hash")
}
EMA_STATE = EMA.__qualname__


class ResumeState(Callback):
    """Save and restore the state of a run that Lightning does not; the command line always adds it.

    Before each batch, torch's generators are seeded by (seed, cursor, index of its first row in the global batch).
    Dropout is then independent of validation, sampling and restarts, and of the number of ranks as long as their
    micro-batches have the same size. The states of the generators are in the checkpoint for callbacks of users.

    Args:
        seed: of the run.
        configuration: the composed configuration, stored in every checkpoint.
    """

    def __init__(self, seed: int, configuration: dict) -> None:
        self.seed = seed
        self.configuration = configuration
        self.validated_step: int | None = None  # optimizer steps at the latest validation of this process
        self.validation: dict[str, float] = {}  # metrics of the latest validation, also of earlier starts

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        data = trainer.datamodule
        first_row = data.plan.first_row(batch_idx % data.plan.accumulate, trainer.global_rank)
        torch.manual_seed(hash_seed("batch", self.seed, data.cursor.epoch, data.cursor.batch, first_row))
        # Lightning counts the steps of this process; a resumed run must continue the x-axis of its curves.
        lightning_private.set_logged_step(trainer, data.steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.datamodule.plan.accumulate == 0:
            trainer.datamodule.advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated_step = trainer.global_step
            metrics = trainer.callback_metrics.items()
            self.validation = {name: float(value) for name, value in metrics if name.startswith("val/")}

    def state_dict(self) -> dict:
        return {"validation": self.validation}

    def load_state_dict(self, state: dict) -> None:
        self.validation = state["validation"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        # A collective: Lightning calls this hook on every rank, and rank 0 writes the states of all.
        checkpoint["random_state"] = ProcessGroup().gather(random_state())
        lightning_private.mark_batch_unread(checkpoint["loops"]["fit_loop"])
        checkpoint["configuration"] = self.configuration
        checkpoint["cursor"] = trainer.datamodule.cursor.state()
        checkpoint["data"] = trainer.datamodule.identity() if trainer.is_global_zero else None
        checkpoint["class_names"] = trainer.datamodule.class_names
        manifest = getattr(trainer.datamodule, "manifest", None)
        checkpoint["tokenizer_hash"] = manifest.tokenizer_hash if manifest else None
        checkpoint["rounding"] = rounding(trainer.strategy.root_device)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        data = trainer.datamodule
        data.restore(checkpoint["cursor"], checkpoint.get("data"))
        if "loops" in checkpoint:  # absent in imported weights
            _count_micro_batches(checkpoint["loops"]["fit_loop"], data)
        states = checkpoint["random_state"]
        if len(states) == trainer.world_size:  # otherwise the seeds of the batches are enough
            set_random_state(states[trainer.global_rank])
        now = rounding(trainer.strategy.root_device)
        changes = differences(checkpoint.get("rounding", now), now).values()  # absent from older checkpoints
        if changes and trainer.state.fn == "fit":
            log(f"this run continues within rounding, not bit for bit: {'; '.join(changes)}")


class CorruptRecords(Callback):
    """Count the rows that replace those of corrupt records; the command line always adds it.

    With `data.on_corrupt` ``skip``, it logs the count over all devices as data/replaced_rows. It stops the run when an
    epoch has more of them than `data.skip_limit`. The counts are in the checkpoint.

    Raises:
        UserError: on every rank at the same step, above the limit.
    """

    def __init__(self) -> None:
        self.total = self.in_epoch = 0
        self.pending: torch.Tensor | None = None  # not yet fetched from the device

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        data = trainer.datamodule
        if getattr(data, "on_corrupt", "stop") != "skip":
            return
        # The sum stays on the device: fetching it at every step would wait for the GPU.
        replaced = batch["replaced"]
        self.pending = replaced if self.pending is None else self.pending + replaced
        epoch_ends = data.cursor.batch == 0
        boundary = (batch_idx + 1) % data.plan.accumulate == 0
        if boundary and (epoch_ends or data.steps % trainer.log_every_n_steps == 0):
            self._reduce_pending(trainer)
            self.log("data/replaced_rows", float(self.total))
            if self.in_epoch > data.skip_limit:
                fault = f"{self.in_epoch} rows of this epoch replace corrupt ones, more than data.skip_limit"
                raise UserError(f"{fault} {data.skip_limit}; restore the shards named above, or raise the limit")
            self.in_epoch = 0 if epoch_ends else self.in_epoch

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self._reduce_pending(trainer)
        checkpoint["replaced_rows"] = {"total": self.total, "in_epoch": self.in_epoch}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        counts = checkpoint.get("replaced_rows") or {"total": 0, "in_epoch": 0}
        self.total, self.in_epoch = counts["total"], counts["in_epoch"]

    def _reduce_pending(self, trainer: Trainer) -> None:
        if self.pending is None:
            return
        # A collective, at steps that all ranks derive from the cursor.
        count = int(trainer.strategy.reduce(self.pending.to(torch.int64), reduce_op="sum"))
        self.total, self.in_epoch, self.pending = self.total + count, self.in_epoch + count, None


def _count_micro_batches(fit_loop: dict, data) -> None:
    """Convert the cursor into Lightning's micro-batches, since the accumulation may differ from the checkpoint's."""
    at_epoch_end = data.cursor.batch == 0 and lightning_private.completed_batches(fit_loop) > 0
    steps = data.batches_per_epoch if at_epoch_end else data.cursor.batch
    total, current = data.steps * data.plan.accumulate, steps * data.plan.accumulate
    lightning_private.set_batch_progress(fit_loop, total=total, current=current)
    if not at_epoch_end:
        lightning_private.reopen_epoch(fit_loop, data.cursor.epoch)


def rounding(device: torch.device) -> dict[str, str]:
    """Return what the rounding of a training depends on: versions, device and a hash of the training kernels' tiles."""
    result = {"torch": str(torch.__version__), "device": device.type}
    if device.type == "cuda":
        result["device"] = torch.cuda.get_device_name(device)
        with suppress(ImportError):  # some platforms lack Triton
            import triton

            from aim_lightning.models.aim.fused.tiling import BLOCK, TILING

            result |= {"triton": triton.__version__, "tiles": short_key([BLOCK, TILING])}
    return result


def random_state() -> dict:
    """Return the states of Python's, NumPy's and torch's generators as plain values and tensors."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict) -> None:
    """Set the generators to a result of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class RunCheckpointIO(CheckpointIO):
    """Trainer plugin for checkpoints with explicit keys and plain types, written atomically and read without code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any | None = None) -> None:
        write_checkpoint(to_file(checkpoint), path)

    def load_checkpoint(self, path, map_location: Any | None = None, weights_only: bool | None = None) -> dict:
        return from_file(read_checkpoint(path))

    def remove_checkpoint(self, path) -> None:
        Path(path).unlink(missing_ok=True)


def to_file(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert Lightning's dictionary to the content of a file, with weights grouped by the module's attribute."""
    rest = dict(checkpoint)
    content: dict[str, Any] = {}
    for name, value in rest.pop("state_dict").items():
        group, _, inner = name.partition(".")
        content.setdefault(group, {})[inner] = value
    rest["weight_groups"] = list(content)
    content |= {key: rest.pop(lightning_key) for key, lightning_key in KEYS.items()}
    rest["callbacks"] = dict(rest["callbacks"])
    content["ema"] = rest["callbacks"].pop(EMA_STATE, None)
    return {**content, "trainer": rest}


def from_file(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a file to Lightning's dictionary, the inverse of `to_file`."""
    checkpoint = dict(content["trainer"])
    groups = checkpoint.pop("weight_groups")
    checkpoint["state_dict"] = {f"{g}.{name}": value for g in groups for name, value in content[g].items()}
    checkpoint |= {lightning_key: content[key] for key, lightning_key in KEYS.items()}
    checkpoint["callbacks"] = dict(checkpoint["callbacks"])
    if content["ema"] is not None:
        checkpoint["callbacks"][EMA_STATE] = content["ema"]
    return checkpoint
