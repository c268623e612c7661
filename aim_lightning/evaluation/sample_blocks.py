"""Blocks of drawn images in files that appear by rename: what a killed evaluation continues from."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aim_lightning.evaluation.sample_plan import SamplePlan
from aim_lightning.evaluation.throughput import Throughput
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.files import abandoned, atomic_path


class BlockDirectory:
    """block-NNNNNN.npy: uint8 (images, height, width, 3)."""

    def __init__(self, path: str | Path, plan: SamplePlan) -> None:
        self.path, self.plan = Path(path), plan

    def file(self, block: int) -> Path:
        """Where a block lies, or will."""
        return self.path / f"block-{block:06d}.npy"

    def missing(self) -> list[int]:
        """Blocks that are not there, or are not whole."""
        return [block for block, rows in enumerate(self.plan.blocks()) if not self._whole(block, len(rows))]

    def write(self, block: int, images: Tensor) -> None:
        """Write uint8 (images, 3, H, W) atomically."""
        with atomic_path(self.file(block)) as temporary, temporary.open("wb") as file:
            np.save(file, images.permute(0, 2, 3, 1).contiguous().cpu().numpy(), allow_pickle=False)

    def read(self, block: int) -> np.ndarray:
        """uint8 (images, H, W, 3), mapped from the disk."""
        return np.load(self.file(block), mmap_mode="r", allow_pickle=False)

    def clear(self) -> None:
        """Delete what a kill in the middle of a write left, also beside the directory, where the archive is written."""
        for leftover in (*abandoned(self.path), *abandoned(self.path.parent)):
            leftover.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all blocks, and whatever a kill left beside them."""
        if self.path.is_dir():
            shutil.rmtree(self.path)

    def _whole(self, block: int, rows: int) -> bool:
        try:
            array = self.read(block)
        except (OSError, ValueError, EOFError):
            return False
        return array.dtype == np.uint8 and array.ndim == 4 and len(array) == rows


def resolved(pipeline: AiMPipeline, sampling: SamplingOptions, ranks: ProcessGroup) -> SamplingOptions:
    """The options without `auto`, the same on all processes. Every process must call it."""
    sampling = ranks.run_on_all(lambda: pipeline.resolve(sampling))
    return replace(sampling, batch_size=min(ranks.gather(sampling.batch_size)))


def draw_blocks(
    pipeline: AiMPipeline, plan: SamplePlan, blocks: Sequence[range], sampling: SamplingOptions
) -> Iterator[Tensor]:
    """The images of block after block, uint8 (images, 3, H, W), on the network's device.

    A short block is drawn filled up. On a GPU a block is decoded to pixels while the next one is drawn.

    Args:
        pipeline: draws.
        plan: labels and block size.
        blocks: of the plan, in ascending order: the short one, if any, is the last.
        sampling: options; the block size is the plan's.
    """
    numbers = torch.cat([torch.arange(rows.start, rows.stop) for rows in blocks])
    options = {**sampling.options(), "batch_size": plan.block_size}
    return pipeline.batches(plan.labels[numbers], indices=numbers, **options)


def draw_block(pipeline: AiMPipeline, plan: SamplePlan, rows: range, sampling: SamplingOptions) -> Tensor:
    """The images of one block."""
    (images,) = draw_blocks(pipeline, plan, [rows], sampling)
    return images


def draw_missing(
    pipeline: AiMPipeline, directory: BlockDirectory, sampling: SamplingOptions, ranks: ProcessGroup
) -> dict[str, float]:
    """Draw what is not there yet, shared out over the processes; returns the speed. Every process must call it.

    Raises:
        UserError, OSError: a block that cannot be drawn or written, on all processes.
    """
    plan = directory.plan
    missing = ranks.broadcast(directory.missing() if ranks.is_rank_zero else None)
    rows = plan.blocks()
    with Throughput("sampling", sum(len(rows[block]) for block in missing), ranks) as meter:
        ranks.run_on_all(lambda: _draw(pipeline, directory, sampling, ranks.shard(missing), meter))
    return meter.performance()


def _draw(
    pipeline: AiMPipeline, directory: BlockDirectory, sampling: SamplingOptions, own: Sequence[int], meter: Throughput
) -> None:
    """This process's blocks."""
    rows = directory.plan.blocks()
    drawn = draw_blocks(pipeline, directory.plan, [rows[block] for block in own], sampling) if own else ()
    for block, images in zip(own, drawn, strict=True):
        directory.write(block, images)
        meter.advance(len(images))
