"""Scoring of image sets, and one evaluation: generate the missing samples, score them, write the record."""

import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aim_lightning.evaluation.evaluated_model import EvaluatedModel
from aim_lightning.evaluation.image_sets import Between, ImageSet, NpzImages, check_size, decoded_size, on_device
from aim_lightning.evaluation.nearest import NearestImages
from aim_lightning.evaluation.reference import BATCH
from aim_lightning.evaluation.sample_blocks import BlockDirectory, SamplePlan, generate_missing
from aim_lightning.evaluation.score_record import read_record, score_record
from aim_lightning.evaluation.throughput import Throughput
from aim_lightning.metrics import count_suffix
from aim_lightning.metrics.fdr import mean_of_ratios, network_label
from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.metrics.scores import Scores
from aim_lightning.runs.lease import Lease
from aim_lightning.runs.results import hardware
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.files import write_bytes, write_json
from aim_lightning.utils.logging import log
from aim_lightning.utils.pixels import ROUNDING
from aim_lightning.utils.short_key import short_key

ARCHIVE, PREVIEW, NEAREST, RECORD, LEASE = "samples.npz", "preview.png", "nearest.png", "scores.json", "lease.json"


@dataclass
class Scorer:
    """Score image sets against one reference; `validate`, training and `evaluate` all use it.

    Args:
        network: loaded, on its device.
        reference: statistics of the reference images.
        image_size: of the reference images, (height, width); None where it is unknown.
        ranks: share the images.
        splitting: of the Inception Score, ``adm`` or ``torch_fidelity``.
        batch_size: images per step and device.
        compare: also the metrics on features of single images, such as precision and density.
        heldout: statistics of held-out real images on the same network; with them also FDr.
        more: scorers with other feature networks, whose values are added; with FDr also its mean over all networks.
        performance: of computing the reference, for the record.
    """

    network: FeatureNetwork
    reference: ReferenceImages
    image_size: tuple[int, int] | None
    ranks: ProcessGroup
    splitting: str = "adm"
    batch_size: int = BATCH
    compare: bool = True
    heldout: ReferenceImages | None = None
    more: list["Scorer"] = field(default_factory=list)
    performance: dict[str, Any] = field(default_factory=dict)
    _scores: Scores | None = field(default=None, init=False, repr=False)

    def prepare(self, num_images: int) -> Scores:
        """Return empty scores for this many images; sets of one size share the object.

        Raises:
            UserError: there are too few images, or too few reference images.
        """
        if self._scores is None or self._scores.num_images != num_images:
            options = self.splitting, self.compare, self.heldout
            self._scores = Scores(self.network, self.reference, num_images, *options)
        self._scores.reset()
        return self._scores

    def hardware(self) -> str:
        """Return a description of the devices in use."""
        return hardware(self.network.device, self.ranks.world_size)

    def protocol(self, num_images: int) -> dict[str, Any]:
        """Return everything except the images that values of this many images depend on."""
        protocol = (self._scores or self.prepare(num_images)).protocol(num_images)
        others = {network_label(other.network): other.protocol(num_images) for other in self.more}
        return protocol | ({"more_features": others} if others else {})

    def score(self, image_set: ImageSet, between: Between = iter) -> tuple[dict[str, float], dict[str, Any]]:
        """Score an image set. Every rank must call it.

        Args:
            image_set: to be scored.
            between: as in `Reference.statistics`.

        Returns:
            Values by plain name; and for the record the speed of the features and the seconds of the metrics.

        Raises:
            UserError: images cannot be read or differ from the reference in size, or features are not finite; on all
                ranks.
        """
        scores = self.prepare(len(image_set))
        batches = between(on_device(image_set.shard(self.ranks, self.batch_size), self.network.device))

        def add() -> None:
            for images, labels, numbers in batches:
                check_size(tuple(images.shape[2:]), self.image_size)
                scores.update(images, numbers, labels)
                meter.add(len(images))

        with Throughput("features", len(image_set), self.ranks) as meter:
            self.ranks.run_on_all(add)
        start = time.perf_counter()
        values = scores.compute()
        seconds = round(time.perf_counter() - start, 2)
        scores.reset()
        performance = {"features": meter.performance(), "metrics_s": seconds}
        for other in self.more:
            added, speed = other.score(image_set, between)
            values |= added
            performance |= {f"{name}_{network_label(other.network)}": value for name, value in speed.items()}
        return values | mean_of_ratios(values), performance


@dataclass
class Evaluation:
    """Generate sets of samples with one model, score them and keep the results.

    Args:
        model: pipeline and its facts.
        scorer: scores the samples.
        root: directory of all evaluations of the model's run.
        data: facts about the training data, for the record.
        keep_images: write samples.npz.
        nearest: compares the samples with the training images, for the record and nearest.png.
    """

    model: EvaluatedModel
    scorer: Scorer
    root: Path
    data: dict[str, Any]
    keep_images: bool = True
    nearest: NearestImages | None = None

    def directory(self, plan: SamplePlan, sampling: SamplingOptions) -> Path:
        """Return the directory of a set; its name contains a hash of everything that the images depend on."""
        values = [self.model.facts, plan.labels.tolist(), asdict(self._resolve(plan, sampling))]
        count = count_suffix(len(plan))
        name = f"{self.model.name}-{count}-cfg{sampling.cfg_scale:g}-seed{sampling.seed}-{short_key(values)}"
        return self.root / name

    def run(self, plan: SamplePlan, sampling: SamplingOptions) -> dict[str, Any]:
        """Return the record of a set; finished parts are not computed again. Every rank must call it.

        Raises:
            UserError: another process evaluates the same set, or it cannot be generated or scored; on all ranks.
        """
        directory, sampling = self.directory(plan, sampling), self._resolve(plan, sampling)
        protocol = self._protocol(plan, sampling)
        if (record := self._finished(directory, protocol)) is not None:
            return record
        # The first process to finish removes the blocks, so only one may evaluate the set.
        with ExitStack() as stack:
            lease = Lease(directory / LEASE, activity="generated and scored")
            # None, since rank 0 broadcasts the result and a lease cannot be pickled.
            self.scorer.ranks.on_rank0(lambda: stack.enter_context(lease) and None)
            # Another process may have finished the set before this one got the lease.
            return self._finished(directory, protocol) or self._evaluate(plan, sampling, directory, protocol)

    def _resolve(self, plan: SamplePlan, sampling: SamplingOptions) -> SamplingOptions:
        # With `auto`, a set that is resumed on another device would mix blocks of two kinds of arithmetic.
        return self.model.pipeline.resolve(replace(sampling.for_scores(), batch_size=plan.block_size))

    def _protocol(self, plan: SamplePlan, sampling: SamplingOptions) -> dict[str, Any]:
        classes = sorted(plan.labels.unique().tolist())
        counts = plan.labels.bincount()
        labels = {
            "classes": len(classes),
            "balanced": int(counts.max() - counts[classes].min()) <= 1,
            "sha256": hashlib.sha256(plan.labels.numpy().tobytes()).hexdigest(),
            "chosen": None if len(classes) == len(self.model.pipeline.class_names) else classes,
        }
        values = {"sampling": asdict(sampling), "uint8": ROUNDING, "labels": labels, **self.scorer.protocol(len(plan))}
        values |= {"nearest": self.nearest.protocol()} if self.nearest else {}
        return json.loads(json.dumps(values))  # tuples become lists, as in a record that is read from a file

    def _finished(self, directory: Path, protocol: dict[str, Any]) -> dict[str, Any] | None:
        def read() -> dict[str, Any] | None:
            record = read_record(directory / RECORD) if (directory / RECORD).is_file() else None
            complete = (directory / ARCHIVE).is_file() or not self.keep_images
            return record if record and record["protocol"] == protocol and complete else None

        # Only rank 0's view of the disk counts.
        if record := self.scorer.ranks.on_rank0(read):
            log(f"{directory} is scored already")
        return record

    def _evaluate(self, plan: SamplePlan, sampling: SamplingOptions, directory: Path, protocol: dict) -> dict[str, Any]:
        ranks = self.scorer.ranks
        # Before sampling, which may take hours, where the tokenizer's configuration contains the size.
        check_size(decoded_size(self.model.pipeline.tokenizer), self.scorer.image_size)
        blocks = BlockDirectory(directory / "blocks", plan)
        images, speed = self._images(directory, blocks, sampling)
        ranks.on_rank0(images.identity)  # compares an archive with its checksums
        values, scoring = self.scorer.score(images)
        distances, pairs = self.nearest.compare(images, self.model.pipeline.tokenizer) if self.nearest else ({}, [])
        values |= distances
        performance = {"sampling": speed, **self.scorer.performance, **scoring, "processes": ranks.world_size}
        values_of = self.model.facts, self.data, values, len(plan), protocol, performance
        record = score_record(*values_of, self.scorer.hardware(), self.model.raw)
        record |= {"nearest": pairs} if self.nearest else {}
        return ranks.on_rank0(lambda: self._write(directory, blocks, images, record))

    def _images(self, directory: Path, blocks: BlockDirectory, sampling: SamplingOptions) -> tuple[ImageSet, dict]:
        """Return the samples and the speed of generating them; an archive is used where it exists."""
        ranks, count = self.scorer.ranks, len(blocks.plan.blocks())
        if ranks.broadcast((directory / ARCHIVE).is_file()):
            return NpzImages(directory / ARCHIVE), {}
        if ranks.is_rank_zero:
            blocks.clear()
            if (missing := len(blocks.missing())) < count:
                log(f"resuming {directory}: {missing} of {count} blocks are missing")
        return blocks, generate_missing(self.model.pipeline, blocks, sampling, ranks)

    def _write(self, directory: Path, blocks: BlockDirectory, images: ImageSet, record: dict) -> dict[str, Any]:
        if self.keep_images and not (directory / ARCHIVE).is_file():
            blocks.write_archive(directory / ARCHIVE)
        names = self.model.pipeline.class_names
        write_bytes(directory / PREVIEW, images.preview(names))
        if self.nearest:
            write_bytes(directory / NEAREST, self.nearest.grid(images, record["nearest"], names))
        # The record comes last: with it, the set counts as finished.
        write_json(directory / RECORD, record)
        blocks.remove()
        return record
