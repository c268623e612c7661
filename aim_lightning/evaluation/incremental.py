"""Incremental scoring: rounds of one block per rank that are generated and scored, with a possible stop between two."""

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from aim_lightning.evaluation.sample_blocks import SamplePlan, balanced_labels, generate_blocks, resolve_options
from aim_lightning.evaluation.scorer import Scorer
from aim_lightning.metrics.scores import least_images
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.pixels import ROUNDING

GRID_IMAGES = 64


@dataclass(frozen=True)
class IncrementalScores:
    """Scores of one call, equal on all ranks except for `first_images`.

    Args:
        signal: that stopped the call before it had values; 0 = none.
        num_images: that the values are of.
        values: by plain name.
        first_images: of this rank, uint8 (at most GRID_IMAGES, 3, H, W).
    """

    signal: int
    num_images: int = 0
    values: dict[str, float] = field(default_factory=dict)
    first_images: Tensor = field(default_factory=lambda: torch.zeros(0))


class IncrementalScorer:
    """Score the images that `evaluate` generates: by number, with balanced classes, in blocks of sampling.batch_size.

    Args:
        scorer: feature network and reference.
        sampling: options; the first call replaces `auto`, so that later calls generate the same blocks.
    """

    def __init__(self, scorer: Scorer, sampling: SamplingOptions) -> None:
        self.scorer, self.sampling = scorer, sampling

    def score(
        self, pipeline: AiMPipeline, num_images: int, stop: Callable[[str], int], budget_seconds: float | None = None
    ) -> IncrementalScores:
        """Generate and score images. Every rank must call it.

        Args:
            pipeline: on its device.
            num_images: the largest number of images.
            stop: called on all ranks before each round with the name of the next phase; returns on all ranks either
                0 or the signal because of which to stop.
            budget_seconds: after this time it ends with the images of complete rounds; None = never.

        Raises:
            UserError: an image cannot be generated; on all ranks.
        """
        ranks = self.scorer.ranks
        self.sampling = resolve_options(pipeline, self.sampling, ranks)
        labels = balanced_labels(num_images, range(pipeline.aim.config.num_classes))
        plan = SamplePlan(labels, self.sampling.batch_size)
        blocks, scores = plan.blocks(), self.scorer.prepare(num_images)
        shard, start, first = ranks.shard(blocks), time.monotonic(), []
        generated = zip(shard, generate_blocks(pipeline, plan, shard, self.sampling), strict=True)

        def add() -> None:
            for rows, images in itertools.islice(generated, 1):
                scores.update(images, torch.arange(rows.start, rows.stop), labels[rows.start : rows.stop])
                if not first:
                    first.append(images[:GRID_IMAGES].cpu())

        # All ranks take part in each round, since it contains collectives; in the last one some have no block.
        for begin in range(0, len(blocks), ranks.world_size):
            if signal := stop(f"block {begin} of {len(blocks)} of an evaluation"):
                scores.reset()
                return IncrementalScores(signal)
            ranks.run_on_all(add)
            done = blocks[min(begin + ranks.world_size, len(blocks)) - 1].stop
            may_end = budget_seconds is not None and done >= least_images(self.scorer.compare)
            # Clocks differ: rank 0 decides for all.
            if may_end and ranks.broadcast(time.monotonic() - start > budget_seconds):
                break
        values = ranks.broadcast(scores.compute())
        scores.reset()
        return IncrementalScores(0, done, values, *first)

    def protocol(self, num_images: int) -> dict[str, Any]:
        """Return everything that values of this many images depend on, except for the generating networks."""
        return {"sampling": asdict(self.sampling), "uint8": ROUNDING, **self.scorer.protocol(num_images)}
