"""Blocks of samples: generated in any process with the same result, kept in files from which evaluation resumes."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_lightning.evaluation.image_sets import ImageSet, channels_first, ranges
from aim_lightning.evaluation.throughput import Throughput
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path, remove_abandoned
from aim_lightning.utils.npz import write_npz


@dataclass(frozen=True)
class SamplePlan:
    """A set of samples in blocks of a fixed size; a block does not depend on the rank that generates it.

    Args:
        labels: class of each sample, int64 (N,).
        block_size: samples per block; the last block may have fewer.
    """

    labels: Tensor
    block_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self) -> list[range]:
        """Return the sample numbers of each block."""
        return ranges(len(self), self.block_size)


def balanced_labels(num_images: int, classes: Sequence[int]) -> Tensor:
    """Return labels int64 (N,) in which image k is of class classes[k % len(classes)]."""
    return torch.tensor(list(classes), dtype=torch.int64)[torch.arange(num_images) % len(classes)]


def read_labels(path: str | Path, num_classes: int) -> Tensor:
    """Read a text file with one class number per line; returns int64 (N,).

    Raises:
        UserError: the file is missing or empty, or a line is not a class number.
    """
    try:
        lines = Path(path).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels {path} cannot be read ({type(error).__name__}); give a text file") from None
    for number, line in enumerate(lines, 1):
        if not (line.isdecimal() and int(line) < num_classes):
            raise UserError(f"--labels {path}, entry {number} is {line!r}; expected 0 to {num_classes - 1}")
    if not lines:
        raise UserError(f"--labels {path} is empty; give one class number per line")
    return torch.tensor([int(line) for line in lines], dtype=torch.int64)


class BlockDirectory(ImageSet):
    """The samples of a plan in block-NNNNNN.npy files, uint8 (images, height, width, 3); an image set once complete."""

    def __init__(self, path: str | Path, plan: SamplePlan) -> None:
        self.path, self.plan, self.labels = Path(path), plan, plan.labels

    def __len__(self) -> int:
        return len(self.plan)

    def images(self, parts: Sequence[range]) -> Iterator[Tensor]:
        """Yield the images of each range, which may span several blocks."""
        for rows in parts:
            numbers = range(rows.start // self.plan.block_size, (rows.stop - 1) // self.plan.block_size + 1)
            array, first = np.concatenate([self.block(number) for number in numbers]), rows.start % self.plan.block_size
            yield channels_first(array[first : first + len(rows)])

    def identity(self) -> dict[str, Any]:
        """Return the count; the record's model and protocol identify samples."""
        return {"kind": "drawn", "pictures": len(self)}

    def file(self, block: int) -> Path:
        """Return the path of a block, which need not exist."""
        return self.path / f"block-{block:06d}.npy"

    def missing(self) -> list[int]:
        """Return the numbers of the blocks that are missing or incomplete."""
        return [block for block, rows in enumerate(self.plan.blocks()) if not self._is_complete(block, len(rows))]

    def write(self, block: int, images: Tensor) -> None:
        """Write uint8 (images, 3, H, W) atomically."""
        with atomic_path(self.file(block)) as temporary, temporary.open("wb") as file:
            np.save(file, images.permute(0, 2, 3, 1).contiguous().cpu().numpy(), allow_pickle=False)

    def block(self, number: int) -> np.ndarray:
        """Return uint8 (images, H, W, 3), mapped from the disk."""
        return np.load(self.file(number), mmap_mode="r", allow_pickle=False)

    def write_archive(self, path: Path) -> None:
        """Write images as arr_0, uint8 (N, H, W, 3), and int64 labels as arr_1 (ADM's name) and `labels`."""
        shape, labels = (len(self), *self.block(0).shape[1:]), self.labels.numpy()
        blocks = map(self.block, range(len(self.plan.blocks())))
        write_npz(path, {"arr_1": labels, "labels": labels}, {"arr_0": (shape, "u1", blocks)})

    def clear(self) -> None:
        """Delete the partial files of a killed process, also in the parent directory, which gets the archive."""
        remove_abandoned(self.path, self.path.parent)

    def remove(self) -> None:
        """Delete the directory with all blocks."""
        if self.path.is_dir():
            shutil.rmtree(self.path)

    def _is_complete(self, block: int, rows: int) -> bool:
        try:
            array = self.block(block)
        except (OSError, ValueError, EOFError):
            return False
        return array.dtype == np.uint8 and array.ndim == 4 and len(array) == rows


def resolve_options(pipeline: AiMPipeline, sampling: SamplingOptions, ranks: ProcessGroup) -> SamplingOptions:
    """Return the options without `auto`, for scores and equal on all ranks. Every rank must call it."""
    sampling = ranks.run_on_all(lambda: pipeline.resolve(sampling.for_scores()))
    # Free memory may differ between GPUs, but a block needs one size.
    return replace(sampling, batch_size=min(ranks.gather(sampling.batch_size)))


def generate_blocks(
    pipeline: AiMPipeline, plan: SamplePlan, blocks: Sequence[range], sampling: SamplingOptions
) -> Iterator[Tensor]:
    """Yield the images of one block after the other, uint8 (images, 3, H, W), on the network's device.

    A short block is padded to the block size. On a GPU one block is decoded to pixels while the next is generated.

    Args:
        pipeline: on its device.
        plan: labels and block size.
        blocks: of the plan, ascending, so that a short one is the last.
        sampling: options; the block size is the plan's.
    """
    if blocks:
        numbers = torch.cat([torch.arange(rows.start, rows.stop) for rows in blocks])
        options = {**sampling.options(), "batch_size": plan.block_size}
        yield from pipeline.batches(plan.labels[numbers], indices=numbers, **options)


def generate_missing(
    pipeline: AiMPipeline, directory: BlockDirectory, sampling: SamplingOptions, ranks: ProcessGroup
) -> dict[str, float]:
    """Generate the missing blocks, shared by all ranks, and return the speed. Every rank must call it.

    Raises:
        UserError, OSError: a block cannot be generated or written; on all ranks.
    """
    missing, blocks = ranks.on_rank0(directory.missing), directory.plan.blocks()
    shard = ranks.shard(missing)
    generated = generate_blocks(pipeline, directory.plan, [blocks[number] for number in shard], sampling)

    def write() -> None:
        for number, images in zip(shard, generated, strict=True):
            directory.write(number, images)
            meter.add(len(images))

    with Throughput("sampling", sum(len(blocks[number]) for number in missing), ranks) as meter:
        ranks.run_on_all(write)
    return meter.performance()
