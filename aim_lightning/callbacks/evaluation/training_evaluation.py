"""The metrics of `evaluate` while training goes on, which never notices."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from aim_lightning.callbacks.logging.image_logging import log_image
from aim_lightning.callbacks.training.checkpoints import write_or_tell
from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.cluster import signals
from aim_lightning.evaluation.evaluated_model import identity
from aim_lightning.evaluation.image_sets import check_size, decoded_size
from aim_lightning.evaluation.incremental import IncrementalScorer, Scored
from aim_lightning.evaluation.reference import Reference
from aim_lightning.evaluation.score_record import append_record, score_record, write_record
from aim_lightning.metrics import metric_name
from aim_lightning.metrics.scores import least_images
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.runs.results import hardware
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import tolerate_disk_errors
from aim_lightning.utils.grid import labelled_grid, save_png
from aim_lightning.utils.logging import log

GRID = 8  # rows and columns of the image grid


class TrainingEvaluation(Callback):
    """Draws samples from the averaged (EMA) weights over all ranks and scores them; keeps the best checkpoints.

    Images are those that `evaluate` would draw: by number, in blocks of sampling.batch_size. Acts between two batches
    as checkpoints do; put it before `checkpoints`, so that a checkpoint of the same step knows of it. Between blocks it
    asks for signals: told to stop it gives up, training stops at that step, and the next start evaluates it again.
    samples/evaluation.json has the latest values with all that they depend on, samples/evaluations.jsonl those of every
    evaluation, a line each (a step that was evaluated again after a break has two).

    Args:
        num_samples: images an evaluation; 4 or more, without `compare` 2.
        every_n_steps: optimizer steps between two evaluations; 0 = by epochs. The last step gets one too.
        every_n_epochs: epochs between two; 0 = by steps.
        budget_seconds: for drawing and features; the first evaluation that runs out of it decides for all later ones
            how many images are drawn, so that values stay comparable.
        reference: real images as in `evaluate --reference`; null = the training images.
        compare: also precision, recall and kernel distance, which keep every image's features for the while.
        monitor: plain name of the metric that decides which checkpoints are best; null = the distance.
        mode: whether lower (min) or higher (max) is better.
        keep_best: how many of the best checkpoints stay in RUN/best; 0 = none are written.
        cache_dir: where reference statistics are kept.

    Raises:
        UserError: neither or both of steps and epochs, or a number out of range; at the start of training a `monitor`
            that is none of the metrics.
    """

    needs = ("tokenizer", "features", "images", "sampling", "run_dir")

    def __init__(
        self,
        num_samples: int = 5000,
        every_n_steps: int = 0,
        every_n_epochs: int = 0,
        budget_seconds: float | None = None,
        reference: str | None = None,
        compare: bool = True,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep_best: int = 1,
        cache_dir: str = ".cache/reference",
    ) -> None:
        if (every_n_steps > 0) == (every_n_epochs > 0):
            raise UserError("training evaluation: set one of every_n_steps and every_n_epochs above 0")
        least = least_images(compare)
        if num_samples < least or keep_best < 0 or (budget_seconds is not None and budget_seconds <= 0):
            limits = f"num_samples must be {least} or more, keep_best 0 or more, budget_seconds above 0"
            raise UserError(f"training evaluation: {limits}")
        self.num_samples, self.every_n_steps, self.every_n_epochs = num_samples, every_n_steps, every_n_epochs
        self.budget_seconds, self.reference, self.compare = budget_seconds, reference, compare
        self.monitor, self.mode, self.keep_best, self.cache_dir = monitor, mode, keep_best, cache_dir
        self.evaluated_step, self.epoch_due, self.best = 0, False, []
        self.asked_samples = num_samples

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Feature weights and reference, before training takes its time."""
        self.features.load(pl_module.device)
        real = Reference(self.reference, self.images)
        check_size(decoded_size(self.tokenizer), real.image_size())
        statistics = real.statistics(self.features, ProcessGroup(), self.cache_dir)
        self.rounds = IncrementalScorer(self.features, statistics, self.sampling, self.compare)
        names = self.rounds.prepare(self.num_samples).names()
        if self.monitor is not None and self.monitor not in names:
            raise UserError(f"training evaluation: monitor is {self.monitor!r}; use one of {', '.join(names)}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        step, whole_step = trainer.global_step, batch_idx % trainer.datamodule.plan.accumulate == 0
        due = self.epoch_due or (self.every_n_steps and step % self.every_n_steps == 0)
        if whole_step and due and step > self.evaluated_step:
            asked = self._evaluate(trainer, pl_module)
            if asked:
                log("evaluation given up; the next start does it")
                _preemption(trainer).stop(trainer, asked)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.epoch_due = True  # at the next batch, when Lightning's counters are settled

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self.evaluated_step and self._evaluate(trainer, pl_module):
            log("evaluation of the last step given up, for the checkpoint's sake; `evaluate` scores it")

    def state_dict(self) -> dict:
        names = ("evaluated_step", "epoch_due", "best", "num_samples")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)
        self.num_samples = min(self.asked_samples, self.num_samples) if self.budget_seconds else self.asked_samples

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """Returns the signal because of which it was given up, or NONE."""
        ema = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), _drawing(pl_module.network, ema) as network:
            pipeline = AiMPipeline(network, self.tokenizer)
            budget = self.budget_seconds if self.num_samples == self.asked_samples else None  # it has decided before
            scored = self.rounds.score(pipeline, self.num_samples, partial(_asked, trainer), budget)
        if scored.asked:
            return scored.asked
        self.evaluated_step, self.epoch_due, self.num_samples = trainer.global_step, False, scored.num_images
        record = self._record(trainer, scored, pipeline, raw=ema is None)
        for logger in trainer.loggers:
            curves = {f"metrics/{name}": value for name, value in record["metrics"].items()}
            logger.log_metrics(curves, trainer.global_step - 1)
        if trainer.is_global_zero:
            directory, grid = Path(self.run_dir) / "samples", labelled_grid(scored.first, GRID, [])
            log_image(trainer, "evaluation", grid)
            with tolerate_disk_errors(directory):
                save_png(grid, directory / "evaluation.png")
                write_record(directory / "evaluation.json", record)
                append_record(directory / "evaluations.jsonl", record)
        self._keep_best(trainer, scored.values)
        return signals.NONE

    def _record(self, trainer: Trainer, scored: Scored, pipeline: AiMPipeline, raw: bool) -> dict[str, Any]:
        protocol = {"tokenizer": self.tokenizer.weights_hash, **self.rounds.protocol(scored.num_images)}
        run = Path(self.run_dir)
        model = {"kind": "run", "experiment": run.parent.name, "run": run.name, "step": trainer.global_step}
        model |= {"weights": "raw" if raw else "ema"} | (identity(pipeline) if trainer.is_global_zero else {})
        made_by = hardware(trainer.strategy.root_device, trainer.world_size)
        return score_record(model, {}, scored.values, scored.num_images, protocol, {}, made_by, raw)

    def _keep_best(self, trainer: Trainer, values: dict[str, float]) -> None:
        if not self.keep_best:
            return
        monitor = self.monitor or self.features.metric_name
        step, value = trainer.global_step, values[monitor]
        name = f"{metric_name(monitor, self.num_samples)}={value:z.4f}-step={step:08d}.ckpt"
        # Distances of another number of images, or another metric, cannot be ranked with this one.
        before = self.best
        alike = [entry for entry in self.best if entry[2].partition("=")[0] == name.partition("=")[0]]
        ranking = sorted([*alike, [value, step, name]], reverse=self.mode == "max")
        dropped = [entry for entry in self.best if entry not in alike] + ranking[self.keep_best :]
        self.best = ranking[: self.keep_best]
        directory = Path(self.run_dir) / "best"
        if any(entry[1] == step for entry in self.best) and (failure := write_or_tell(trainer, directory / name)):
            self.best = before
            log(f"warning: {failure}; the best ones so far stay, and training goes on")
            return
        if trainer.is_global_zero:
            for _, _, old in dropped:
                (directory / old).unlink(missing_ok=True)


def _preemption(trainer: Trainer) -> Preemption | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, Preemption)), None)


def _asked(trainer: Trainer, phase: str) -> int:
    """The signal that all ranks agree on; NONE also where nothing looks for signals."""
    preemption = _preemption(trainer)
    return preemption.check(trainer, phase) if preemption else signals.NONE


@contextmanager
def _drawing(network: nn.Module, ema: EMA | None) -> Iterator[nn.Module]:
    """The averaged network, a copy apart; without one the trained network itself, its modes restored afterwards."""
    with nullcontext() if ema else _modes_restored(network):
        yield ema.network if ema else network.eval()


@contextmanager
def _modes_restored(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
