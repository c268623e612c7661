"""Tar files: deterministic writing, detection of truncation, and images read in place."""

import tarfile
from abc import ABC
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import webdataset as wds

from aim_lightning.data.images.base import ImageSource
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path

TAR_ERRORS = (tarfile.TarError, OSError, EOFError)  # raised for a truncated or damaged file, or for no tar at all


@contextmanager
def open_tar(path: Path) -> Iterator[wds.TarWriter]:
    """Open a webdataset TarWriter; bytes depend on the content only, and the file appears when complete.

    Args:
        path: the tar file to write.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        wds.TarWriter(file, user="aim", group="aim", mode=0o644, mtime=0, encoder=False) as writer,
    ):
        yield writer


def tar_members(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of an uncompressed tar in order, each with the archive to extract it from.

    Args:
        file: open file, positioned at the start of the tar.

    Raises:
        tarfile.TarError, OSError, EOFError: truncated, damaged or no tar; the members before the fault were yielded.
    """
    end = file.tell()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            yield tar, member
            tar.members.clear()  # tarfile keeps every member, a million of them for ImageNet
    # tarfile treats damage between two members as the end of the file, so check for the end mark here.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no member and no end of archive at byte {end}")


class TarSource(ImageSource, ABC):
    """Images inside tar files, read in place without unpacking.

    Args:
        class_names: names by label.
        tars: the tar files.
        spans: (n, 3) int64: index into `tars`, offset in bytes, size in bytes.
        labels: labels by row.
        keys: keys by row, as bytes.
    """

    def __init__(
        self, class_names: list[str], tars: list[Path], spans: np.ndarray, labels: Iterable[int], keys: Iterable[bytes]
    ) -> None:
        self.tars = tars
        self._spans = spans
        super().__init__(class_names, labels, keys)

    def files(self) -> list[Path]:
        """Return the tar files."""
        return self.tars

    def location(self, row: int) -> str:
        """Return the tar file and the key of an image."""
        return f"{self.tars[self._spans[row][0]]}, key {self.key(row)}"

    def _content(self, row: int) -> bytes:
        number, offset, size = self._spans[row].tolist()
        try:
            # Opened for each image: loader workers share no file position, and no limit of open files is reached.
            with self.tars[number].open("rb") as file:
                file.seek(offset)
                content = file.read(size)
            if len(content) != size:
                raise OSError(f"the file ends {size - len(content)} bytes too early")
        except OSError as error:
            raise UserError(f"{self.location(row)} cannot be read ({error}); restore the tar file") from error
        return content
