"""Images that lie in tar files, read by their places without unpacking."""

import os
from abc import ABC
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from aim_lightning.data.images.base import ImageSource
from aim_lightning.utils.errors import UserError

_OPEN_FILES = 64  # ImageNet has more shards than a process may have files open (often 1024)


class TarSource(ImageSource, ABC):
    """Images at (number of the tar, offset in it, bytes).

    Args:
        class_names: by label.
        tars: the files.
        places: (n, 3) int64.
        labels: one a row.
        keys: name of each row, as bytes.
    """

    def __init__(
        self,
        class_names: list[str],
        tars: list[Path],
        places: np.ndarray,
        labels: Iterable[int],
        keys: Iterable[bytes],
    ) -> None:
        self.tars, self._places, self._files = tars, places, TarFiles()
        super().__init__(class_names, labels, keys)

    def files(self) -> list[Path]:
        """The tar files."""
        return self.tars

    def _content(self, row: int) -> bytes:
        number, offset, size = self._places[row].tolist()
        try:
            return self._files.read(self.tars[number], offset, size)
        except OSError as error:
            raise UserError(f"{self._where(row)} cannot be read ({error}); restore the tar file") from error

    def _where(self, row: int) -> str:
        return f"{self.tars[self._places[row][0]]}, key {self.key(row)}"


class TarFiles:
    """Reads pieces of files, keeping the latest files open; usable after fork and after pickling."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size) of a file.

        Raises:
            OSError: it is missing or ends before.
        """
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY)
        self._open.move_to_end(path)
        if len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        # pread has no file position: processes that share a handle after a fork cannot disturb each other.
        content = os.pread(self._open[path], size, offset)
        if len(content) != size:
            raise OSError(f"the file ends {size - len(content)} bytes too early")
        return content

    def close(self) -> None:
        """Close every file; `read` opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": OrderedDict()}  # file handles mean nothing in another process

    def __del__(self) -> None:
        self.close()
