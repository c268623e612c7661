"""One evaluation: draw what is missing, score it, write the record."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aim_lightning.evaluation.evaluated_model import EvaluatedModel
from aim_lightning.evaluation.image_sets import BlockImages, ImageSet, NpzImages, check_size, decoded_size, on_device
from aim_lightning.evaluation.npz_export import preview_png, write_archive
from aim_lightning.evaluation.reference import BATCH
from aim_lightning.evaluation.sample_blocks import BlockDirectory, draw_missing
from aim_lightning.evaluation.sample_plan import SamplePlan
from aim_lightning.evaluation.score_record import read_record, score_record, short_key, write_record
from aim_lightning.evaluation.throughput import Throughput
from aim_lightning.metrics import count_suffix
from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.metrics.scores import Scores
from aim_lightning.runs.lease import Lease
from aim_lightning.runs.results import hardware
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.files import write_bytes

ARCHIVE, PREVIEW, RECORD, LEASE = "samples.npz", "preview.png", "scores.json", "lease.json"


@dataclass
class Scorer:
    """What scores images, the same for many sets.

    Args:
        network: loaded, on its device.
        real: statistics of the real images.
        image_size: of the real images, (height, width); None where it is not known.
        ranks: the processes.
        splitting: of the Inception Score, ``adm`` or ``torch_fidelity``.
        batch_size: images at once on a device.
        scores: kept between sets.
        performance: of what was worked out before the first set, for the record.
    """

    network: FeatureNetwork
    real: ReferenceImages
    image_size: tuple[int, int] | None
    ranks: ProcessGroup
    splitting: str = "adm"
    batch_size: int = BATCH
    scores: Scores | None = None
    performance: dict[str, Any] = field(default_factory=dict)

    def hardware(self) -> str:
        """What does the work."""
        return hardware(self.network.device, self.ranks.world_size)

    def protocol(self, num_images: int) -> dict[str, Any]:
        """Everything but the images that the values depend on."""
        return self._scores(num_images).protocol()

    def _scores(self, num_images: int) -> Scores:
        """Empty; one object for all sets of a size."""
        if self.scores is None or self.scores.num_images != num_images:
            self.scores = Scores(self.network, self.real, num_images, self.splitting)
        self.scores.reset()
        return self.scores

    def score(self, images: ImageSet) -> tuple[dict[str, float], dict[str, Any]]:
        """Values by plain name, and speeds for the record: of the features, seconds of the metrics on them. Every
        process must call it.

        Args:
            images: to be scored.

        Raises:
            UserError: images that cannot be read or of another size than the real ones, or features that are not
                finite; on all processes.
        """
        scores = self._scores(len(images))
        with Throughput("features", len(images), self.ranks) as meter:
            self.ranks.run_on_all(lambda: self._update(scores, images, meter))
        start = time.perf_counter()
        values = scores.compute()
        seconds = round(time.perf_counter() - start, 2)
        scores.reset()
        return values, {"features": meter.performance(), "metrics_s": seconds}

    def _update(self, scores: Scores, image_set: ImageSet, meter: Throughput) -> None:
        """With this process's share."""
        for images, labels, numbers in on_device(image_set.shard(self.ranks, self.batch_size), self.network.device):
            check_size(tuple(images.shape[2:]), self.image_size)
            scores.update(images, numbers, labels)
            meter.advance(len(images))


@dataclass
class Evaluation:
    """Draws with one generator and scores the result.

    Args:
        generator: networks and their facts.
        scorer: scores.
        root: directory of all evaluations of this generator's run.
        data: facts about the training data, for the record.
        keep_images: keep samples.npz.
        say: prints a line, once.
    """

    generator: EvaluatedModel
    scorer: Scorer
    root: Path
    data: dict[str, Any]
    keep_images: bool = True
    say: Callable[[str], None] = print

    def directory(self, plan: SamplePlan, sampling: SamplingOptions) -> Path:
        """Where the files of this set are: its name follows everything that the images depend on."""
        values = [self.generator.facts, plan.labels.tolist(), asdict(self._resolved(plan, sampling))]
        count = count_suffix(len(plan))
        name = f"{self.generator.name}-{count}-cfg{sampling.cfg_scale:g}-seed{sampling.seed}-{short_key(values)}"
        return self.root / name

    def run(self, plan: SamplePlan, sampling: SamplingOptions) -> dict[str, Any]:
        """The record of one set; what was done before is not done again. Every process must call it.

        Raises:
            UserError: another command draws the same set at this moment, or it cannot be drawn or scored; on all
                processes.
        """
        directory, sampling = self.directory(plan, sampling), self._resolved(plan, sampling)
        protocol = self._protocol(plan, sampling)
        if (record := self._known(directory, protocol)) is not None:
            return record
        with self._alone(directory):  # another command may have finished it meanwhile
            return self._known(directory, protocol) or self._made(plan, sampling, directory, protocol)

    def _known(self, directory: Path, protocol: dict[str, Any]) -> dict[str, Any] | None:
        """The record of before."""
        ranks = self.scorer.ranks
        record = ranks.broadcast(self._finished(directory, protocol) if ranks.is_rank_zero else None)
        if record is not None:
            self.say(f"{directory} is scored already")
        return record

    @contextmanager
    def _alone(self, directory: Path) -> Iterator[None]:
        """The blocks go when the set is finished, so that only one command may draw it."""
        with ExitStack() as stack:
            self.scorer.ranks.on_rank0(lambda: _hold(stack, Lease(directory / LEASE, activity="generated and scored")))
            yield

    def _made(
        self, plan: SamplePlan, sampling: SamplingOptions, directory: Path, protocol: dict[str, Any]
    ) -> dict[str, Any]:
        """Drawn, scored and written."""
        ranks = self.scorer.ranks
        # Another size is noticed before hours of drawing, where the tokenizer tells its own.
        check_size(decoded_size(self.generator.pipeline.tokenizer), self.scorer.image_size)
        images, speed = self._images(directory, plan, sampling)
        ranks.on_rank0(images.identity)  # an archive is compared with its checksums
        values, scoring = self.scorer.score(images)
        performance = {"sampling": speed, **self.scorer.performance, **scoring, "processes": ranks.world_size}
        facts = self.generator.facts, self.data
        made_by = self.scorer.hardware()
        record = score_record(*facts, values, len(plan), protocol, performance, made_by, self.generator.raw)
        ranks.on_rank0(lambda: self._finish(directory, plan, images, record))
        return ranks.broadcast(record)

    def _resolved(self, plan: SamplePlan, sampling: SamplingOptions) -> SamplingOptions:
        """As images are drawn here: continued on another device, `auto` would mix blocks of two kinds."""
        return self.generator.pipeline.resolve(replace(sampling, batch_size=plan.block_size))

    def _protocol(self, plan: SamplePlan, sampling: SamplingOptions) -> dict[str, Any]:
        classes = sorted(plan.labels.unique().tolist())
        balanced = int(plan.labels.bincount().max()) - int(plan.labels.bincount()[classes].min()) <= 1
        labels = {
            "classes": len(classes),
            "balanced": balanced,
            "sha256": hashlib.sha256(plan.labels.numpy().tobytes()).hexdigest(),
            "chosen": None if len(classes) == len(self.generator.pipeline.class_names) else classes,
        }
        values = {"sampling": asdict(sampling), "labels": labels, **self.scorer.protocol(len(plan))}
        return json.loads(json.dumps(values))  # tuples to lists, as they come back from a file

    def _finished(self, directory: Path, protocol: dict[str, Any]) -> dict[str, Any] | None:
        path = directory / RECORD
        record = read_record(path) if path.is_file() else None
        whole = (directory / ARCHIVE).is_file() or not self.keep_images
        return record if record and record["protocol"] == protocol and whole else None

    def _images(self, directory: Path, plan: SamplePlan, sampling: SamplingOptions) -> tuple[ImageSet, dict]:
        """The drawn images, from the archive where there is one."""
        blocks, ranks = BlockDirectory(directory / "blocks", plan), self.scorer.ranks
        if ranks.broadcast((directory / ARCHIVE).is_file()):
            return NpzImages(directory / ARCHIVE), {}
        if ranks.is_rank_zero:
            blocks.clear()
            if (missing := len(blocks.missing())) < len(plan.blocks()):
                self.say(f"continuing {directory}: {missing} of {len(plan.blocks())} blocks to draw")
        speed = draw_missing(self.generator.pipeline, blocks, sampling, ranks)
        ranks.broadcast(None)  # all blocks are there
        return BlockImages(blocks), speed

    def _finish(self, directory: Path, plan: SamplePlan, images: ImageSet, record: dict[str, Any]) -> None:
        blocks = BlockDirectory(directory / "blocks", plan)
        if self.keep_images and not (directory / ARCHIVE).is_file():
            write_archive(directory / ARCHIVE, blocks)
        write_bytes(directory / PREVIEW, preview_png(images, self.generator.pipeline.class_names))
        write_record(directory / RECORD, record)
        blocks.remove()


def _hold(stack: ExitStack, lease: Lease) -> None:
    """Until the stack is left."""
    stack.enter_context(lease)
