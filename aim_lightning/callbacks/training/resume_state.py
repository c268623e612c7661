"""The state that makes a resumed run exact: the cursor, the random state of every rank, the configuration."""

import random

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.lightning_private import (
    completed_batches,
    mark_batch_unread,
    reopen_epoch,
    set_batch_progress,
    set_logged_step,
)
from aim_lightning.utils.random import hash_seed


class ResumeState(Callback):
    """Save and restore the state of a run that Lightning does not; the command line always adds it.

    Before each batch, torch's generators are seeded by (seed, cursor, index of its first row in the global batch).
    Dropout is then independent of validation, sampling and restarts, and of the number of ranks as long as their
    micro-batches have the same size. The states of the generators are in the checkpoint for callbacks of users.

    Args:
        seed: of the run.
        configuration: the composed document, stored in every checkpoint.
    """

    def __init__(self, seed: int, configuration: dict) -> None:
        self.seed = seed
        self.configuration = configuration

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        data = trainer.datamodule
        first_row = data.plan.first_row(batch_idx % data.plan.accumulate, trainer.global_rank)
        torch.manual_seed(hash_seed("batch", self.seed, data.cursor.epoch, data.cursor.batch, first_row))
        # Lightning counts the steps of this process; a resumed run must continue the x-axis of its curves.
        set_logged_step(trainer, data.steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.datamodule.plan.accumulate == 0:
            trainer.datamodule.advance()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        # A collective: Lightning calls this hook on every rank, and rank 0 writes the states of all.
        checkpoint["random_state"] = ProcessGroup().gather(random_state())
        mark_batch_unread(checkpoint["loops"]["fit_loop"])
        checkpoint["configuration"] = self.configuration
        checkpoint["cursor"] = trainer.datamodule.cursor.state()
        checkpoint["data"] = trainer.datamodule.identity() if trainer.is_global_zero else None
        checkpoint["class_names"] = trainer.datamodule.class_names
        manifest = getattr(trainer.datamodule, "manifest", None)
        checkpoint["tokenizer_hash"] = manifest.tokenizer_hash if manifest else None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        data = trainer.datamodule
        data.restore(checkpoint["cursor"], checkpoint.get("data"))
        if "loops" in checkpoint:  # absent in imported weights
            _count_micro_batches(checkpoint["loops"]["fit_loop"], data)
        states = checkpoint["random_state"]
        if len(states) == trainer.world_size:  # otherwise the seeds of the batches are enough
            set_random_state(states[trainer.global_rank])


class ValidatedStep(Callback):
    """Record the optimizer step of the latest validation in `step`; None before the first one."""

    def __init__(self) -> None:
        self.step: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.step = trainer.global_step


def _count_micro_batches(fit_loop: dict, data) -> None:
    """Convert the cursor into Lightning's micro-batches, since the accumulation may differ from the checkpoint's."""
    at_epoch_end = data.cursor.batch == 0 and completed_batches(fit_loop) > 0
    steps = data.batches_per_epoch if at_epoch_end else data.cursor.batch
    set_batch_progress(fit_loop, total=data.steps * data.plan.accumulate, current=steps * data.plan.accumulate)
    if not at_epoch_end:
        reopen_epoch(fit_loop, data.cursor.epoch)


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
