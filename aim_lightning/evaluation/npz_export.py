"""Export of a set of samples: ADM's .npz and a preview."""

from pathlib import Path

import torch

from aim_lightning.evaluation.image_sets import ImageSet
from aim_lightning.evaluation.sample_blocks import BlockDirectory
from aim_lightning.utils.grid import labelled_grid, png_bytes
from aim_lightning.utils.npz import write_npz

ROWS, COLUMNS = 10, 8


def write_archive(path: Path, directory: BlockDirectory) -> None:
    """Write images as arr_0, uint8 (N, H, W, 3), and int64 labels as arr_1 (ADM's name) and `labels`."""
    plan = directory.plan
    blocks = range(len(plan.blocks()))
    shape = (len(plan), *directory.read(0).shape[1:])
    labels = plan.labels.numpy()
    write_npz(path, {"arr_1": labels, "labels": labels}, {"arr_0": (shape, "u1", map(directory.read, blocks))})


def preview_png(image_set: ImageSet, class_names: list[str] | None) -> bytes:
    """Return a PNG with one row per class for the first classes; without labels the first images."""
    labels, names = image_set.labels, []
    if labels is None:
        numbers = list(range(min(len(image_set), ROWS * COLUMNS)))
    else:
        classes = [int(label) for label in labels.unique()[:ROWS]]
        by_class = [(labels == label).nonzero()[:COLUMNS, 0].tolist() for label in classes]
        width = min(map(len, by_class))
        numbers = [number for row in by_class for number in row[:width]]
        names = [class_names[label] if class_names else str(label) for label in classes]
    columns = len(numbers) // len(names) if names else COLUMNS
    # Image sets are read in ascending order; the inverse permutation puts the images into their rows.
    order = torch.tensor(numbers).argsort()
    images = image_set.read(sorted(numbers))[order.argsort()]
    return png_bytes(labelled_grid(images, columns, names))
