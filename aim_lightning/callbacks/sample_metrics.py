"""Scores samples of the (EMA) network against real pictures: a Fréchet distance and class agreement."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from aim_lightning.metrics.frechet import FrechetDistance
from aim_lightning.metrics.names import metric_name
from aim_lightning.metrics.probe import ClassAgreement, LinearProbe
from aim_lightning.metrics.reference import ReferenceStatistics, cached_reference
from aim_lightning.models import AiM
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.utils.random import hash_seed

Scored = Iterable[tuple[Tensor, Tensor]]  # (uint8 pictures, labels that were asked for)


class SampleMetrics(Callback):
    """Distance between samples and the training pictures, and how often a sample shows the class it should.

    Runs in `validate`, and during training every `every_n_validations` validations. Image k is of class
    k % num_classes and drawn with index k, whatever rank draws it.

    Args:
        num_samples: pictures to draw, over all devices.
        every_n_validations: 0 = in `validate` alone.
        baselines: in `validate` also score real validation pictures and an untrained network.
        batch_size: pictures scored at once on a device.
        cache_dir: where reference statistics are kept, by data and feature network.
    """

    needs = ("tokenizer", "features", "pictures", "sampling")

    def __init__(
        self,
        num_samples: int = 50000,
        every_n_validations: int = 0,
        baselines: bool = False,
        batch_size: int = 250,
        cache_dir: str = ".cache/reference",
    ) -> None:
        self.num_samples, self.every_n_validations, self.baselines = (
            num_samples,
            every_n_validations,
            baselines,
        )
        self.batch_size, self.cache_dir = batch_size, cache_dir
        self.validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the feature network's weights where they will be needed, before anything else takes time."""
        if stage == "validate" or self.every_n_validations:
            self.features.load()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validations += 1
        alone = trainer.state.fn == "validate"
        due = self.every_n_validations and self.validations % self.every_n_validations == 0
        if alone or due:
            self._score_all(trainer, pl_module, baselines=alone and self.baselines)

    def protocol(self) -> dict:
        """Everything that the numbers depend on, for results.json."""
        return {
            "num_samples": self.num_samples,
            "features": self.features.protocol(),
            "reference": self.pictures.open("train").fingerprint,
            "tokenizer": self.tokenizer.weights_hash,
            "sampling": asdict(replace(self.sampling, batch_size=self.batch_size)),
        }

    def state_dict(self) -> dict:
        return {"validations": self.validations}

    def load_state_dict(self, state: dict) -> None:
        self.validations = state["validations"]

    def _score_all(self, trainer: Trainer, pl_module: LightningModule, baselines: bool) -> None:
        device = pl_module.device
        self.features.to(device)
        reference = self._reference(trainer)
        has_ema = any(type(callback).__name__ == "EMA" for callback in trainer.callbacks)
        scored = {"": self._samples(trainer, pl_module.network, "samples")}
        if baselines:
            scored["_untrained"] = self._samples(trainer, _untrained(pl_module.network, device), "untrained")
            scored["_real"] = self._real(trainer)
        for suffix, batches in scored.items():
            distance, agreement, count = self._score(batches, reference, device)
            for base, value in ((self._distance_name, distance), ("class_agreement", agreement)):
                name = metric_name(base, count, raw=not has_ema and not suffix) + suffix
                self.log(f"metrics/{name}", value, rank_zero_only=False)

    @property
    def _distance_name(self) -> str:
        return self.features.metric_name

    def _score(self, batches: Scored, reference: ReferenceStatistics, device) -> tuple[Tensor, Tensor, int]:
        """Both metrics from one pass over the features; every rank gets the value over all ranks."""
        frechet = FrechetDistance(self.features).to(device)
        frechet.load_reference(reference.frechet)
        probe = LinearProbe.from_state(reference.probe_weight, reference.probe_bias)
        agreement = ClassAgreement(probe).to(device)
        for images, labels in batches:
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
        options = {**self.sampling.options(), "batch_size": self.batch_size}
        batches = AiMPipeline(network, self.tokenizer).batches(labels, indices=indices, **options)
        parts = zip(batches, labels.split(self.batch_size), strict=True)
        total = -(-len(indices) // self.batch_size)
        yield from tqdm(parts, what, total=total, leave=False, disable=not trainer.is_global_zero)

    def _real(self, trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
        pictures = self.pictures.open("val")
        self._count = len(pictures)
        yield from pictures.batches(self.batch_size, range(trainer.global_rank, len(pictures), trainer.world_size))

    def _reference(self, trainer: Trainer) -> ReferenceStatistics:
        """Rank 0 computes and caches; the others read its file."""
        pictures = self.pictures.open("train")

        def read() -> ReferenceStatistics:
            with tqdm(total=len(pictures), desc="reference", leave=False, disable=not trainer.is_global_zero) as bar:
                return cached_reference(
                    self.cache_dir,
                    pictures.fingerprint,
                    self.features,
                    lambda: pictures.batches(self.batch_size),
                    len(pictures.class_names),
                    progress=lambda rows: bar.update(rows - bar.n),
                    class_names=pictures.class_names,
                )

        if trainer.is_global_zero:
            read()
        trainer.strategy.barrier("reference")
        return read()


def _untrained(network: AiM, device: torch.device) -> AiM:
    """A fresh network of the same sizes, the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hash_seed("untrained"))
        return AiM(network.config).to(device).eval()
