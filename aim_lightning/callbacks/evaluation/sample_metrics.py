"""Scores samples of the (EMA) network against real images: a Fréchet distance and class agreement."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from aim_lightning.callbacks.evaluation.scoring import Scoring, has_ema
from aim_lightning.callbacks.training.stop_request import between
from aim_lightning.evaluation.reference import Reference
from aim_lightning.metrics import metric_name
from aim_lightning.metrics.features import FEATURES
from aim_lightning.metrics.fid import FrechetDistance
from aim_lightning.metrics.probe import ClassAgreement, LinearProbe
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.models import AiM
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.utils.random import hash_seed

Scored = Iterable[tuple[Tensor, Tensor]]  # (uint8 images, labels that were asked for)


class SampleMetrics(Scoring):
    """Distance between samples and the training images, and how often a sample shows the class it should.

    Runs in `validate`, and during training every `every_n_validations` validations. Image k is of class
    k % num_classes and drawn with index k, whatever rank draws it.

    Args:
        num_samples: images to draw, over all devices.
        every_n_validations: 0 = in `validate` alone.
        baselines: in `validate` also score real validation images and an untrained network.
        batch_size: images scored at once on a device.
        cache_dir: where reference statistics are kept, by data and feature network.
    """

    needs = ("tokenizer", "features", "images", "sampling")

    def __init__(
        self,
        num_samples: int = 50000,
        every_n_validations: int = 0,
        baselines: bool = False,
        batch_size: int = 250,
        cache_dir: str = ".cache/reference",
    ) -> None:
        super().__init__(every_n_validations, batch_size, cache_dir)
        self.num_samples, self.baselines = num_samples, baselines

    def score(self, trainer: Trainer, pl_module: LightningModule, alone: bool) -> None:
        """Score samples; in `validate` the baselines too."""
        device = pl_module.device
        reference = self.reference(trainer, "train", probe=True)
        scored = {"": self._samples(trainer, pl_module.network, "samples")}
        if alone and self.baselines:
            scored["_untrained"] = self._samples(trainer, _untrained(pl_module.network, device), "untrained")
            scored["_real"] = self._real(trainer)
        for suffix, batches in scored.items():
            distance, agreement, count = self._score(trainer, batches, reference, device)
            for base, value in ((self._distance_name, distance), ("class_agreement", agreement)):
                name = metric_name(base, count, raw=not has_ema(trainer) and not suffix) + suffix
                self.log(f"metrics/{name}", value, rank_zero_only=False)

    def protocol(self) -> dict:
        """Everything that the numbers depend on, for results.json."""
        return {
            "num_samples": self.num_samples,
            "features": self.features.protocol(),
            "reference": Reference(None, self.images).identity(),
            "tokenizer": self.tokenizer.weights_hash,
            "sampling": asdict(replace(self.sampling, batch_size=self.batch_size)),
        }

    @property
    def _distance_name(self) -> str:
        return self.features.metric_name

    def _score(
        self, trainer: Trainer, batches: Scored, reference: ReferenceImages, device: torch.device
    ) -> tuple[Tensor, Tensor, int]:
        """Both metrics from one pass over the features; every rank gets the value over all ranks."""
        frechet = FrechetDistance(self.features).to(device)
        frechet.load_gaussian(*reference.gaussians[FEATURES], reference.count)
        agreement = ClassAgreement(LinearProbe.from_state(*reference.probe)).to(device)
        for images, labels in between(trainer, batches, "the next samples to score"):
            features = self.features(images.to(device))
            frechet.update_features(features, real=False)
            agreement.update(features, labels.to(device))
        distance = frechet.compute()
        return distance.float(), agreement.compute().float(), self._count

    def _samples(self, trainer: Trainer, network: AiM, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the samples."""
        self._count = self.num_samples
        indices = torch.arange(trainer.global_rank, self.num_samples, trainer.world_size)
        labels = indices % network.config.num_classes
        pipeline = AiMPipeline(network, self.tokenizer)
        self.sampling = pipeline.resolve(replace(self.sampling, batch_size=self.batch_size))  # for the protocol too
        batches = pipeline.batches(labels, indices=indices, **self.sampling.options())
        parts = zip(batches, labels.split(self.batch_size), strict=True)
        total = -(-len(indices) // self.batch_size)
        yield from tqdm(parts, what, total=total, leave=False, disable=not trainer.is_global_zero)

    def _real(self, trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.images.open("val")
        self._count = len(images)
        yield from images.batches(self.batch_size, range(trainer.global_rank, len(images), trainer.world_size))


def _untrained(network: AiM, device: torch.device) -> AiM:
    """A fresh network of the same sizes, the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hash_seed("untrained"))
        return AiM(network.config, network.backend_option).to(device).eval()
