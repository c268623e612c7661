"""What makes a run continue exactly: the cursor, random state and metrics of every rank, the configuration."""

import random

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from aim_lightning.callbacks.training.metric_state import metric_states, restore_metrics
from aim_lightning.utils.random import hash_seed


class ResumeState(Callback):
    """Always on; the command line adds it.

    Before each batch torch's generators are seeded by (seed, cursor, place of its first row in the global batch):
    dropout is then the same whatever validation, sampling or a restart drew in between, and for any number of ranks
    whose micro-batches are as large. The generators' states travel in the checkpoint all the same,
    for callbacks of users' own.

    Args:
        seed: of the run.
        configuration: the composed document, stored in every checkpoint.
    """

    def __init__(self, seed: int, configuration: dict) -> None:
        self.seed, self.configuration = seed, configuration

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        data = trainer.datamodule
        first_row = data.plan.first_row(batch_idx % data.plan.accumulate, trainer.global_rank)
        torch.manual_seed(hash_seed("batch", self.seed, data.cursor.epoch, data.cursor.batch, first_row))
        # The x-axis of the logs: optimizer steps, however many optimizers there are and wherever a run was continued.
        trainer.fit_loop.epoch_loop._batches_that_stepped = data.steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.datamodule.plan.accumulate == 0:
            trainer.datamodule.advance()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """Runs on every rank: all states are gathered, rank 0 writes them."""
        ranks = [(random_state(), metric_states(pl_module))]
        if trainer.world_size > 1:
            ranks, mine = [None] * trainer.world_size, ranks[0]
            torch.distributed.all_gather_object(ranks, mine)
        _mark_batch_as_unread(checkpoint["loops"]["fit_loop"])
        checkpoint["random_state"] = [state for state, _ in ranks]
        checkpoint["metrics"] = [state for _, state in ranks]
        checkpoint["configuration"] = self.configuration
        checkpoint["cursor"] = trainer.datamodule.cursor.state()
        checkpoint["data"] = trainer.datamodule.identity() if trainer.is_global_zero else None
        checkpoint["class_names"] = trainer.datamodule.class_names
        manifest = getattr(trainer.datamodule, "manifest", None)
        checkpoint["tokenizer_hash"] = manifest.tokenizer_hash if manifest else None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        data = trainer.datamodule
        data.restore(checkpoint["cursor"], checkpoint.get("data"))
        if "loops" in checkpoint:  # imported weights come without a training
            _count_micro_batches(checkpoint["loops"]["fit_loop"], data)
        states = checkpoint["random_state"]
        if len(states) == trainer.world_size:  # another number of ranks has no counterpart; batches are seeded anyway
            set_random_state(states[trainer.global_rank])
        restore_metrics(pl_module, checkpoint.get("metrics") or [{}], trainer.global_rank, trainer.world_size)


def _mark_batch_as_unread(fit_loop: dict) -> None:
    """A checkpoint is written before a batch is trained on: Lightning must not count that batch as begun."""
    progress = fit_loop["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        counters["ready"] = counters["completed"]
    progress["is_last_batch"] = False


def _count_micro_batches(fit_loop: dict, data) -> None:
    """Lightning counts micro-batches: put the cursor into those of this run, whose accumulation may be another."""
    progress, accumulate = fit_loop["epoch_loop.batch_progress"], data.plan.accumulate
    at_end = data.cursor.batch == 0 and progress["current"]["completed"] > 0  # saved after an epoch's last batch
    done = data.batches_per_epoch if at_end else data.cursor.batch
    for counters, steps in ((progress["total"], data.steps), (progress["current"], done)):
        for name in counters:
            counters[name] = steps * accumulate
    if not at_end:
        _reopen_epoch(fit_loop["epoch_progress"], data.cursor.epoch)


def _reopen_epoch(progress: dict, epoch: int) -> None:
    """A training that ended within an epoch has closed it for Lightning; going on, it is in the middle of it."""
    for counters in (progress["total"], progress["current"]):
        counters |= {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}


def random_state() -> dict:
    """States of Python's, NumPy's and torch's generators as plain values and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict) -> None:
    """Inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
