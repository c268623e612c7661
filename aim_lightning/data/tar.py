"""Tar files whose bytes depend on their content alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import webdataset as wds

from aim_lightning.utils.files import atomic_path


@contextmanager
def open_tar(path: Path) -> Iterator[wds.TarWriter]:
    """A webdataset TarWriter without clock, user or machine in it; the file appears when it is complete."""
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        wds.TarWriter(file, user="aim", group="aim", mode=0o644, mtime=0, encoder=False) as writer,
    ):
        yield writer
