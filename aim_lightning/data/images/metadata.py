"""Read the labels of a Hugging Face imagefolder from metadata.jsonl or metadata.csv."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from aim_lightning.data.images.base import FileSource, image_files, sha256_json, warn_left_out
from aim_lightning.data.images.shard_source import MAX_CLASSES, warn_gaps
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable

METADATA = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("label", "class")


def metadata_file(directory: Path) -> Path | None:
    """Return the metadata file of a directory; None without one.

    Args:
        directory: directory of images.
    """
    return next((directory / name for name in METADATA if (directory / name).is_file()), None)


def has_labels(path: Path) -> bool:
    """Return True if the first image of a metadata file has a label.

    Args:
        path: the metadata file.

    Raises:
        UserError: the file is damaged.
    """
    return any(next(_rows(path), {}).get(column) is not None for column in COLUMNS)


class MetadataSource(FileSource):
    """Images in the order of a metadata file with the columns `file_name`, and `label` or `class`.

    Integer labels are class indices. Other labels are class names, which are numbered in sorted order.

    Args:
        path: the metadata file; file names are relative to its directory.

    Raises:
        UserError: a damaged file, a missing column or image, an image that is listed twice, a label out of range.
    """

    def __init__(self, path: Path) -> None:
        self.root = path.parent
        files, values = [], []
        for number, row in enumerate(_rows(path), 1):
            column = next((name for name in COLUMNS if row.get(name) is not None), None)
            if not isinstance(row.get("file_name"), str) or not isinstance(row.get(column), int | str):
                fix = f"it needs file_name, and {' or '.join(COLUMNS)} as text or integer"
                raise UserError(f"{path}, image {number}: {fix}")
            files.append(PurePosixPath(row["file_name"]).as_posix())
            values.append(row[column])
        if not files:
            raise UserError(f"{path}: no image is listed; correct the list")
        others: list[str] = []
        present, counts = set(image_files(self.root, set(), others)), Counter(files)
        for names, fact in (
            ([name for name in counts if name not in present], "are absent or no images"),
            ([name for name, count in counts.items() if count > 1], "are listed twice"),
        ):
            if names:
                fact = f"{len(names)} of {len(files)} files {fact} (first: {printable(names[0])})"
                raise UserError(f"{path}: {fact}; correct the list")
        left_out = [name for name in (*others, *sorted(present - counts.keys())) if name not in METADATA]
        warn_left_out(self.root, left_out, f"not in {path.name}, or not an image format that Pillow decodes")
        class_names, labels = _classes(path, values)
        super().__init__(class_names, labels, map(os.fsencode, files))

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256 over class names, and path, size in bytes and label of every image."""
        rows = ([self.key(row), self._size(row), int(self.labels[row])] for row in range(len(self)))
        return sha256_json([self.class_names, *rows])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from csv.DictReader(file)
                return
            for line in filter(str.strip, file):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"{line[:20]!r} is no JSON object")
                yield row
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}); restore it") from None


def _classes(path: Path, values: list[Any]) -> tuple[list[str], list[int]]:
    """Return class names and the label of each image."""
    texts = [str(value) for value in values]
    # CSV has no types: a column of digits holds class indices, as in JSON.
    if not all(text.removeprefix("-").isdecimal() for text in texts) or (
        path.suffix != ".csv" and not all(isinstance(value, int) for value in values)
    ):
        names = sorted(set(texts))
        index = {name: label for label, name in enumerate(names)}
        return [printable(name) for name in names], [index[text] for text in texts]
    labels = [int(text) for text in texts]
    if wrong := [label for label in labels if not 0 <= label < MAX_CLASSES]:
        raise UserError(f"{path}: label {wrong[0]} is out of range, labels lie between 0 and {MAX_CLASSES - 1}")
    warn_gaps(path, set(labels))
    return [str(label) for label in range(max(labels) + 1)], labels
