"""Fashion-MNIST as image shards: the small embedded set and the full one.

python -m aim_lightning.data.images.fashion_mnist --out data/fashion_mnist
"""

import gzip
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from aim_lightning.data.images.shard_writer import EncodedImage, write_image_shards
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.progress import progress

DEBIAN_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = [
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
]
_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049


def make(
    out: Path,
    source: Path = DEBIAN_DIRECTORY,
    train_rows: int | None = None,
    val_rows: int | None = None,
    rows_per_shard: int = 1000,
) -> None:
    """Write Fashion-MNIST as shards of 28x28 grey PNGs to out/train and out/val, in the order of its files.

    Args:
        out: directory, created if missing; shards in it are replaced.
        source: directory of the four IDX .gz files.
        train_rows: training images, a multiple of 10: the first ones of each class in equal numbers. None = all.
        val_rows: the same for val, from the t10k files.
        rows_per_shard: images per shard.

    Raises:
        UserError: files are missing or damaged, or a number of rows is not a multiple of 10.
    """
    for split, prefix, rows in (("train", "train", train_rows), ("val", "t10k", val_rows)):
        images, labels = read_split(source, prefix)
        chosen = choose_rows(labels, rows, f"{split}_rows").tolist()
        extra = {"source": f"Fashion-MNIST, {prefix}-*.gz", "license": "MIT, Copyright (c) 2017 Zalando SE"}
        records = _records(images, labels, progress(chosen, f"writing {split}"), split)
        write_image_shards(records, Path(out) / split, CLASS_NAMES, rows_per_shard, extra)
        print(f"wrote {len(chosen)} images to {out}/{split}")


def read_split(source: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 28, 28) uint8 and labels (n,) uint8 of a split.

    Args:
        source: directory of the IDX files.
        prefix: ``train`` or ``t10k``.

    Raises:
        UserError: a file is missing, damaged or not from Fashion-MNIST.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(
            f"{source} does not exist; install Debian's package (`apt-get install dataset-fashion-mnist`; "
            "without root: `apt-get download dataset-fashion-mnist && dpkg-deb -x *.deb DIR`, then "
            f"--source DIR{DEBIAN_DIRECTORY}) or pass a directory of the IDX files with --source"
        )
    images = _read_idx(source / f"{prefix}-images-idx3-ubyte.gz", _IMAGES_MAGIC, (28, 28))
    labels = _read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", _LABELS_MAGIC, ())
    if len(images) != len(labels):
        raise UserError(f"{source} has {len(images)} {prefix} images but {len(labels)} labels; download both again")
    if labels.max(initial=0) >= len(CLASS_NAMES):
        raise UserError(f"{source}: {prefix} has label {labels.max()}; Fashion-MNIST has 0 to 9")
    return images, labels


def _read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the content of an IDX file of unsigned bytes, (rows, *shape)."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; put Fashion-MNIST's four .gz files there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no complete gzip file ({error}); download it again") from error
    header = [int(number) for number in np.frombuffer(content, ">u4", min(2 + len(shape), len(content) // 4))]
    start = 4 * (2 + len(shape))
    if len(header) * 4 != start or header[0] != magic or tuple(header[2:]) != shape:
        raise UserError(f"{path} starts with {header}, expected {[magic, 'rows', *shape]}; it is another file")
    rows, expected = header[1], start + header[1] * int(np.prod(shape))
    if len(content) != expected:
        raise UserError(f"{path} unpacks to {len(content)} bytes, its header says {expected}; download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(rows, *shape)


def choose_rows(labels: np.ndarray, rows: int | None, name: str) -> np.ndarray:
    """Return increasing row numbers: all rows, or the first rows / 10 of every class.

    Args:
        labels: labels of all rows.
        rows: number of rows; None = all.
        name: name of the option for messages.

    Raises:
        UserError: `rows` is no multiple of 10, or a class has too few images.
    """
    if rows is None:
        return np.arange(len(labels))
    per_class, remainder = divmod(rows, len(CLASS_NAMES))
    if remainder or per_class < 1:
        raise UserError(f"{name} is {rows}; set a positive multiple of {len(CLASS_NAMES)}")
    by_class = [np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASS_NAMES))]
    fewest = min(map(len, by_class))
    if fewest < per_class:
        raise UserError(f"{name} is {rows}, {per_class} per class, but a class has only {fewest}; lower it")
    return np.sort(np.concatenate(by_class))


def _records(images: np.ndarray, labels: np.ndarray, rows: Iterable[int], split: str) -> Iterator[EncodedImage]:
    for row in rows:
        buffer = io.BytesIO()
        Image.fromarray(images[row]).save(buffer, "PNG", optimize=True)
        yield buffer.getvalue(), "png", int(labels[row]), f"{split}-{row:05d}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, or 2 after a UserError.

    Args:
        arguments: command-line arguments; None = sys.argv.
    """
    try:
        auto_cli(make, args=arguments, as_positional=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
