"""Drawing and scoring at once, in rounds of a block a process, between which it can end."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from aim_lightning.evaluation.sample_blocks import draw_block, resolved
from aim_lightning.evaluation.sample_plan import SamplePlan, balanced_labels
from aim_lightning.metrics.features import FeatureNetwork
from aim_lightning.metrics.reference_statistics import ReferenceImages
from aim_lightning.metrics.scores import Scores, least_images
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup

FIRST = 64  # images for a grid


@dataclass(frozen=True)
class Scored:
    """What came out, the same on all processes but for `first`.

    Args:
        asked: what ended it before anything was known; 0 = nothing did.
        num_images: that the values are of.
        values: by plain name.
        first: images of this process, uint8 (at most FIRST, 3, H, W).
    """

    asked: int
    num_images: int = 0
    values: dict[str, float] = field(default_factory=dict)
    first: Tensor = field(default_factory=lambda: torch.zeros(0))


class IncrementalScorer:
    """Images are those that `evaluate` draws: by number, with balanced classes, in blocks of sampling.batch_size.

    Args:
        network: loaded.
        real: statistics of the real images.
        sampling: how images are drawn.
        compare: also precision, recall and kernel distance.
    """

    def __init__(
        self, network: FeatureNetwork, real: ReferenceImages, sampling: SamplingOptions, compare: bool
    ) -> None:
        self.network, self.real, self.sampling, self.compare = network, real, sampling, compare
        self.scores: Scores | None = None

    def prepare(self, num_images: int) -> Scores:
        """Empty scores for so many images; one object for all evaluations of a size.

        Raises:
            UserError: too few of them, or of real images.
        """
        if self.scores is None or self.scores.num_images != num_images:
            self.scores = Scores(self.network, self.real, num_images, compare=self.compare)
        self.scores.reset()
        return self.scores

    def score(
        self, pipeline: AiMPipeline, num_images: int, asked: Callable[[str], int], budget_seconds: float | None = None
    ) -> Scored:
        """Every process must call it.

        Args:
            pipeline: on its device.
            num_images: at most.
            asked: called before each round with what comes next, on all processes; must give all the same answer:
                0, or why to give up.
            budget_seconds: after so many it ends with the images of whole rounds; None = never.

        Raises:
            UserError: an image that cannot be drawn, on all processes.
        """
        labels, ranks = balanced_labels(num_images, range(pipeline.aim.config.num_classes)), ProcessGroup()
        self.sampling = resolved(pipeline, self.sampling, ranks)  # later evaluations draw the same blocks
        plan, scores = SamplePlan(labels, self.sampling.batch_size), self.prepare(num_images)
        blocks, first, start = plan.blocks(), torch.zeros(0), time.monotonic()
        for begin in range(0, len(blocks), ranks.world_size):  # every process goes round equally often
            reason = asked(f"block {begin} of {len(blocks)} of an evaluation")
            if reason:
                scores.reset()
                return Scored(reason)
            round_ = blocks[begin : begin + ranks.world_size]
            own = round_[ranks.rank : ranks.rank + 1]
            images = ranks.run_on_all(lambda own=own: self._drawn(pipeline, plan, own, scores))
            first = images[:FIRST].cpu() if begin == 0 and own else first
            num_images = round_[-1].stop
            if num_images >= least_images(self.compare) and _out_of_time(start, budget_seconds, ranks):
                break
        values = ranks.broadcast(scores.compute())
        scores.reset()
        return Scored(0, num_images, values, first)

    def _drawn(self, pipeline: AiMPipeline, plan: SamplePlan, own: list[range], scores: Scores) -> Tensor | None:
        """The images of this process's block of a round, scored; None where it has none."""
        images = None
        for rows in own:
            images = draw_block(pipeline, plan, rows, self.sampling)
            scores.update(images, torch.arange(rows.start, rows.stop), plan.labels[rows.start : rows.stop])
        return images

    def protocol(self, num_images: int) -> dict[str, Any]:
        """Everything that values of so many images depend on, but for the networks that draw."""
        return {"sampling": asdict(self.sampling), **self.scores.protocol(num_images)}


def _out_of_time(start: float, budget_seconds: float | None, ranks: ProcessGroup) -> bool:
    """The first process's clock decides for all."""
    return budget_seconds is not None and ranks.broadcast(time.monotonic() - start > budget_seconds)
