"""The labels, numbers and blocks of a set of samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError


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


def ranges(count: int, size: int) -> list[range]:
    """Split 0 to count - 1 into ranges of `size`; the last one may be shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def balanced_labels(num_images: int, classes: Sequence[int]) -> Tensor:
    """Return labels int64 (N,) in which image k is of class classes[k % len(classes)].

    Raises:
        UserError: num_images is below one.
    """
    if num_images < 1:
        raise UserError(f"--num is {num_images}; it must be at least 1")
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
