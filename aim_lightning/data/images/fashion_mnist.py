"""Fashion-MNIST as image shards: the small embedded set and the full one.

python -m aim_lightning.data.images.fashion_mnist --out data/fashion_mnist
"""

import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from aim_lightning.data.images.decode import read_image
from aim_lightning.data.images.script import run_script
from aim_lightning.data.images.shard_writer import EncodedImage, write_image_shards
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.progress import progress

DEBIAN_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
ROWS_PER_SHARD = 1000
CLASS_NAMES = [
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
]
# Of the unpacked files: Debian compresses them again.
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def make(
    out: Path, source: Path = DEBIAN_DIRECTORY, train_rows: int | None = None, val_rows: int | None = None
) -> None:
    """Write Fashion-MNIST as shards of 28x28 grey PNGs to out/train and out/val, in the order of its files.

    Args:
        out: directory, created if missing; shards in it are replaced.
        source: directory of the four IDX .gz files.
        train_rows: training images, a multiple of 10: the first ones of each class in equal numbers. None = all.
        val_rows: the same for val, from the t10k files.

    Raises:
        UserError: files are missing or damaged, or a number of rows is not a multiple of 10.
    """
    for split, prefix, rows in (("train", "train", train_rows), ("val", "t10k", val_rows)):
        images, labels = read_split(source, prefix)
        chosen = choose_rows(labels, rows, f"{split}_rows").tolist()
        extra = {"source": f"Fashion-MNIST, {prefix}-*.gz", "license": "MIT, Copyright (c) 2017 Zalando SE"}
        records = _records(images, labels, progress(chosen, f"writing {split}"), split)
        write_image_shards(records, Path(out) / split, CLASS_NAMES, ROWS_PER_SHARD, extra)
        print(f"wrote {len(chosen)} images to {out}/{split}")


def read_split(source: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 28, 28) uint8 and labels (n,) uint8 of a split.

    Args:
        source: directory of the IDX files.
        prefix: ``train`` or ``t10k``.

    Raises:
        UserError: a file is missing, damaged or not from Fashion-MNIST.
    """
    images = _read_bytes(Path(source) / f"{prefix}-images-idx3-ubyte.gz", header=16)
    labels = _read_bytes(Path(source) / f"{prefix}-labels-idx1-ubyte.gz", header=8)
    return images.reshape(-1, 28, 28), labels


def _read_bytes(path: Path, header: int) -> np.ndarray:
    """Return the content of an IDX file after its header, (n,) uint8."""
    if not path.is_file():
        fix = "run `apt-get install dataset-fashion-mnist`, or set --source to its files (data/README.md)"
        raise UserError(f"{path} does not exist; {fix}")
    packed = read_image(path)
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        content = b""
    if hashlib.sha256(content).hexdigest() != SHA256[path.name]:
        raise UserError(f"{path} is damaged or not Fashion-MNIST's file (its SHA-256 differs); download it again")
    return np.frombuffer(content, np.uint8, offset=header)


def choose_rows(labels: np.ndarray, rows: int | None, name: str) -> np.ndarray:
    """Return increasing row numbers: the first rows / 10 of every class.

    Args:
        labels: labels of all rows.
        rows: number of rows; None = all, since the classes have equal sizes.
        name: name of the option for messages.

    Raises:
        UserError: `rows` is no multiple of 10, or a class has too few images.
    """
    per_class, remainder = divmod(len(labels) if rows is None else rows, len(CLASS_NAMES))
    by_class = [np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASS_NAMES))]
    if remainder or per_class < 1 or min(map(len, by_class)) < per_class:
        raise UserError(f"{name} is {rows}; set a multiple of 10 from 10 to {len(labels)}")
    return np.sort(np.concatenate(by_class))


def _records(images: np.ndarray, labels: np.ndarray, rows: Iterable[int], split: str) -> Iterator[EncodedImage]:
    for row in rows:
        buffer = io.BytesIO()
        Image.fromarray(images[row]).save(buffer, "PNG", optimize=True)
        yield buffer.getvalue(), "png", int(labels[row]), f"{split}-{row:05d}"


if __name__ == "__main__":
    sys.exit(run_script(make))
