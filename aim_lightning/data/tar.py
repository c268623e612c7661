"""Tar files whose bytes depend on their content alone, and reading that notices where one breaks off."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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


def members(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Members of an uncompressed tar in order, each with the archive to extract it from.

    Raises:
        tarfile.TarError, OSError, EOFError: truncated, damaged or no tar; the members before that have been given.
    """
    end = file.tell()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            yield tar, member
            tar.members.clear()  # otherwise all of a million stay in memory
    # Between members tarfile takes damage for the end of the file, so look for the end mark ourselves.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no member and no end of archive at byte {end}")
