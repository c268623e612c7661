"""Which images make up a set of samples: labels, numbers, blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class SamplePlan:
    """A set of images in blocks of a fixed size, which are always drawn alike whoever draws them.

    Args:
        labels: class of each image, int64 (N,).
        block_size: images in a block, the last one may have fewer.
    """

    labels: Tensor
    block_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self) -> list[range]:
        """Numbers of the images of each block."""
        return ranges(len(self), self.block_size)


def ranges(count: int, size: int) -> list[range]:
    """0 to count - 1 in pieces of `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def balanced_labels(num_images: int, classes: Sequence[int]) -> Tensor:
    """Image k is of class classes[k % len(classes)]: each class equally often, up to one image.

    Raises:
        UserError: fewer than one image.
    """
    if num_images < 1:
        raise UserError(f"--num is {num_images}; it must be at least 1")
    return torch.tensor(list(classes), dtype=torch.int64)[torch.arange(num_images) % len(classes)]


def read_labels(path: str | Path, num_classes: int) -> Tensor:
    """One class number a line of a text file; int64 (N,).

    Raises:
        UserError: missing file, a line that is no class number, or no lines.
    """
    try:
        lines = Path(path).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels {path} cannot be read ({type(error).__name__}); give a text file") from None
    for number, line in enumerate(lines, 1):
        if not (line.isdecimal() and int(line) < num_classes):
            raise UserError(f"--labels {path}, entry {number} is {line!r}; expected 0 to {num_classes - 1}")
    if not lines:
        raise UserError(f"--labels {path} is empty; give one class number a line")
    return torch.tensor([int(line) for line in lines], dtype=torch.int64)
