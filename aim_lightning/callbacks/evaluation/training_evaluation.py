"""The metrics of `evaluate` during training, which continues as without them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from aim_lightning.callbacks.find_callback import find_callback
from aim_lightning.callbacks.logging.image_logging import log_image
from aim_lightning.callbacks.training.checkpoints import write_or_report
from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.cluster import signals
from aim_lightning.evaluation.evaluated_model import identity
from aim_lightning.evaluation.image_sets import check_size, decoded_size
from aim_lightning.evaluation.incremental import IncrementalScorer, IncrementalScores
from aim_lightning.evaluation.reference import Reference
from aim_lightning.evaluation.score_record import describe_reference, score_record
from aim_lightning.evaluation.scorer import Scorer
from aim_lightning.metrics import metric_name
from aim_lightning.metrics.scores import least_images
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import tolerate_disk_errors, write_json
from aim_lightning.utils.grid import labelled_grid, save_png
from aim_lightning.utils.lightning_private import logged_step
from aim_lightning.utils.logging import log
from aim_lightning.utils.ranges import Range, check_arguments

COLUMNS = 8  # of the image grid


@dataclass(eq=False, kw_only=True)
class TrainingEvaluation(Callback):
    """Generate samples from the averaged (EMA) weights on all ranks, score them and keep the best checkpoints.

    The images are those that `evaluate` generates: by number, in blocks of sampling.batch_size. The callback acts
    between two batches, as checkpoints do. Put it before `checkpoints`: a checkpoint of the same step then contains
    that the evaluation is done. It checks for signals between blocks. A signal ends the evaluation and training at that
    step, and the next start repeats the evaluation.

    samples/evaluation.json has the latest record. samples/evaluations.jsonl has one line per evaluation; a step that
    was evaluated again after an interruption has two.

    Args:
        num_samples: images per evaluation; 4 or more, without `compare` 2.
        every_n_steps: optimizer steps between two evaluations; 0 = by epochs. The last step is evaluated too.
        every_n_epochs: epochs between two evaluations; 0 = by steps.
        budget_seconds: for sampling and features. The first evaluation that exceeds it determines the number of images
            of all later ones, so that values stay comparable.
        reference: as in `evaluate --reference`; null = the training images.
        compare: also kernel distance, MIND, precision, recall, density and coverage, which keep every image's features.
        monitor: plain name of the metric that ranks checkpoints; null = the distance.
        mode: whether lower (min) or higher (max) is better.
        keep_best: number of best checkpoints in RUN/best; 0 = none.
        cache_dir: directory of reference statistics.
        allow_untrained_guidance: sample with guidance although training has label_dropout 0 or 1.

    Raises:
        UserError: neither or both of steps and epochs, a number out of range, or at the start of training an unknown
            `monitor`.
    """

    needs = ("tokenizer", "features", "images", "sampling", "run_dir")

    num_samples: int = 5000
    every_n_steps: int = 0
    every_n_epochs: int = 0
    budget_seconds: float | None = None
    reference: str | None = None
    compare: bool = True
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    keep_best: int = 1
    cache_dir: str = ".cache/reference"
    allow_untrained_guidance: bool = False

    def __post_init__(self) -> None:
        if (self.every_n_steps > 0) == (self.every_n_epochs > 0):
            raise UserError("training evaluation: set one of every_n_steps and every_n_epochs above 0")
        ranges = {"num_samples": Range(least_images(self.compare)), "budget_seconds": Range(above=True)}
        check_arguments("training evaluation: ", TrainingEvaluation, vars(self), **ranges)
        self.configured_samples = self.num_samples
        self.evaluated_step = 0
        self.epoch_due = False
        self.best: list[list] = []  # [value, step, file name], best first

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load feature weights and reference before training takes any time."""
        self.features.load(pl_module.device)
        ranks, reference = ProcessGroup(), Reference(self.reference, self.images)
        size = reference.image_size()
        check_size(decoded_size(self.tokenizer), size)
        statistics = reference.statistics(self.features, ranks, self.cache_dir)
        if self.reference:  # names of metrics do not contain it
            log(f"training evaluation: the reference is {describe_reference(statistics.source)}")
        scorer = Scorer(self.features, statistics, size, ranks, compare=self.compare)
        self.scorer = IncrementalScorer(scorer, self.sampling)
        names = scorer.prepare(self.num_samples).names()
        if self.monitor is not None and self.monitor not in names:
            raise UserError(f"training evaluation: monitor is {self.monitor!r}; use one of {', '.join(names)}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        """Evaluate before the first batch of a step that is due."""
        step, first_batch = trainer.global_step, batch_idx % trainer.datamodule.plan.accumulate == 0
        due = self.epoch_due or (self.every_n_steps and step % self.every_n_steps == 0)
        if first_batch and due and step > self.evaluated_step and (signal := self._evaluate(trainer, pl_module)):
            log("evaluation aborted; the next start repeats it")
            find_callback(trainer, Preemption).stop(trainer, signal)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make an evaluation due at the next batch, when Lightning's counters are settled."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.epoch_due = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the last step."""
        if trainer.global_step > self.evaluated_step and self._evaluate(trainer, pl_module):
            log("evaluation of the last step aborted to write the checkpoint in time; `evaluate` scores it")

    def state_dict(self) -> dict:
        """Return the progress and the best checkpoints."""
        names = ("evaluated_step", "epoch_due", "best", "num_samples")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        """Restore the state; a number of samples that a budget reduced stays as long as there is a budget."""
        self.__dict__.update(state)
        reduced = min(self.configured_samples, self.num_samples)
        self.num_samples = reduced if self.budget_seconds else self.configured_samples

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """Evaluate and return NONE, or return the signal that aborted the evaluation."""
        ema, preemption = find_callback(trainer, EMA), find_callback(trainer, Preemption)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        # Training must be bit-identical with and without evaluation: its random state and modes are restored.
        with torch.random.fork_rng(devices=devices), _sampling_network(pl_module.network, ema) as network:
            pipeline = AiMPipeline(network, self.tokenizer)
            # A reduced number of samples means that the budget has decided before.
            budget = self.budget_seconds if self.num_samples == self.configured_samples else None
            stop = partial(preemption.check, trainer) if preemption else lambda phase: signals.NONE
            scores = self.scorer.score(pipeline, self.num_samples, stop, budget)
        if scores.signal:
            return scores.signal
        self.evaluated_step, self.epoch_due, self.num_samples = trainer.global_step, False, scores.num_images
        record = self._record(trainer, scores, pipeline, raw=ema is None)
        curves = {f"metrics/{name}": value for name, value in record["metrics"].items()}
        for logger in trainer.loggers:
            logger.log_metrics(curves, logged_step(trainer))
        if trainer.is_global_zero:
            directory, grid = Path(self.run_dir) / "samples", labelled_grid(scores.first_images, COLUMNS, [])
            log_image(trainer, "evaluation", grid)
            with tolerate_disk_errors(directory):
                save_png(grid, directory / "evaluation.png")
                write_json(directory / "evaluation.json", record)
                with (directory / "evaluations.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._keep_best(trainer, scores.values)
        return signals.NONE

    def _record(self, trainer: Trainer, scores: IncrementalScores, pipeline: AiMPipeline, raw: bool) -> dict[str, Any]:
        protocol = {"tokenizer": self.tokenizer.weights_hash, **self.scorer.protocol(scores.num_images)}
        run = Path(self.run_dir)
        model = {"kind": "run", "experiment": run.parent.name, "run": run.name, "step": trainer.global_step}
        model |= {"weights": "raw" if raw else "ema"} | (identity(pipeline) if trainer.is_global_zero else {})
        devices = self.scorer.scorer.hardware()
        return score_record(model, {}, scores.values, scores.num_images, protocol, {}, devices, raw)

    def _keep_best(self, trainer: Trainer, values: dict[str, float]) -> None:
        if not self.keep_best:
            return
        monitor = self.monitor or self.features.metric_name
        step, value = trainer.global_step, values[monitor]
        name = f"{metric_name(monitor, self.num_samples)}={value:z.4f}-step={step:08d}.ckpt"
        # Values of another metric, or of another number of images, cannot be ranked with this one.
        previous = self.best
        comparable = [entry for entry in self.best if entry[2].partition("=")[0] == name.partition("=")[0]]
        ranking = sorted([*comparable, [value, step, name]], reverse=self.mode == "max")
        dropped = [entry for entry in self.best if entry not in comparable] + ranking[self.keep_best :]
        self.best = ranking[: self.keep_best]
        directory = Path(self.run_dir) / "best"
        if any(entry[1] == step for entry in self.best) and (failure := write_or_report(trainer, directory / name)):
            self.best = previous
            log(f"warning: {failure}; the previous best checkpoints stay, and training continues")
            return
        if trainer.is_global_zero:
            for _, _, old in dropped:
                (directory / old).unlink(missing_ok=True)


@contextmanager
def _sampling_network(network: nn.Module, ema: EMA | None) -> Iterator[nn.Module]:
    """Yield the averaged network; without EMA the trained one in evaluation mode, restored afterwards."""
    modes = {} if ema else {module: module.training for module in network.modules()}
    try:
        yield ema.network if ema else network.eval()
    finally:
        for module, training in modes.items():
            module.training = training
