"""Scores of samples in validation, with the scorer of `evaluate`: a Fréchet distance and class agreement."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from aim_lightning.callbacks.evaluation.scoring import Scoring
from aim_lightning.callbacks.find_callback import find_callback
from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.callbacks.training.stop_request import between
from aim_lightning.evaluation.image_sets import ExperimentImages
from aim_lightning.evaluation.incremental import IncrementalScorer
from aim_lightning.evaluation.scorer import Scorer
from aim_lightning.metrics import metric_name
from aim_lightning.models import AutoregressiveNetwork
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.random import hash_seed


@dataclass(eq=False, kw_only=True)
class SampleMetrics(Scoring):
    """Score samples of the (EMA) network against the training images.

    Runs in `validate`, and during training every `every_n_validations` validations. The samples are those that
    `evaluate` generates with the same seed: image k is of class k % num_classes, in blocks of sampling.batch_size.

    Args:
        num_samples: images to generate, over all devices.
        every_n_validations: 0 = in `validate` only.
        baselines: in `validate` also score real validation images and an untrained network.
        batch_size: images scored per step and device.
        cache_dir: directory of reference statistics.
        allow_untrained_guidance: sample with guidance although training had label_dropout 0 or 1.
    """

    needs = ("tokenizer", "features", "images", "sampling")

    num_samples: int = 50000
    baselines: bool = False
    allow_untrained_guidance: bool = False
    scorer: IncrementalScorer | None = field(default=None, init=False)

    def score(self, trainer: Trainer, pl_module: LightningModule, in_validate: bool) -> None:
        """Score samples; in `validate` the baselines too."""
        if self.scorer is None:
            reference = self.reference(trainer, "train", probe=True)
            scorer = Scorer(self.features, reference, None, ProcessGroup(), batch_size=self.batch_size, compare=False)
            self.scorer = IncrementalScorer(scorer, self.sampling)
        values = self._samples(trainer, pl_module.network)
        self._log(values, self.num_samples, raw=find_callback(trainer, EMA) is None)
        if in_validate and self.baselines:
            self._log(self._samples(trainer, _untrained(pl_module.network)), self.num_samples, "_untrained")
            images = ExperimentImages(self.images.open("val"), "val")
            between_batches = partial(between, trainer, phase="the next real images to score")
            self._log(self.scorer.scorer.score(images, between_batches)[0], len(images), "_real")

    def protocol(self) -> dict[str, Any]:
        """Return everything that the values depend on, for results.json."""
        values = {"num_samples": self.num_samples, "tokenizer": self.tokenizer.weights_hash}
        return values | self.scorer.protocol(self.num_samples)

    def _samples(self, trainer: Trainer, network: AutoregressiveNetwork) -> dict[str, float]:
        pipeline = AiMPipeline(network, self.tokenizer)
        return self.scorer.score(pipeline, self.num_samples, partial(self.stop, trainer)).values

    def _log(self, values: dict[str, float], num_images: int, suffix: str = "", raw: bool = False) -> None:
        for name, value in values.items():
            self.log(f"metrics/{metric_name(name, num_images, raw)}{suffix}", value, rank_zero_only=False)


def _untrained(network: AutoregressiveNetwork) -> AutoregressiveNetwork:
    """Return a new network of the same sizes; its weights are the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hash_seed("untrained"))
        untrained = type(network)(network.config, network.backend_option)
        return untrained.to(network.lm_head.weight.device).eval()
