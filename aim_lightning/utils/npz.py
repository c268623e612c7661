"""Streaming access to .npz files of images, without unpickling."""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path, sha256_file

# Exceptions of zipfile, decompression and NumPy's header parser for damaged files.
_DAMAGE = (zipfile.BadZipFile, zlib.error, TokenError, OSError, EOFError, ValueError, KeyError, NotImplementedError)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name


class NpzFile:
    """The arrays of a .npz file by name.

    Raises:
        UserError: the file is missing, truncated, or no .npz.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist; give a .npz file")
        try:
            with zipfile.ZipFile(self.path) as archive:
                self.members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        except _DAMAGE as error:
            raise self._damaged(error) from None

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def array(self, name: str) -> np.ndarray:
        """Read an array.

        Raises:
            UserError: the array is absent, damaged, or contains pickled objects.
        """
        with self.member(name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def rows(self, name: str) -> "NpzRows":
        """Return an array whose rows are read on demand."""
        return NpzRows(self, name)

    def sha256(self) -> str:
        """Return the hex sha256 of the file after checking the checksums of uncompressed arrays.

        Raises:
            UserError: an array differs from its checksum.
        """
        # zipfile checks compressed arrays while reading; uncompressed ones are mapped, without a check.
        for name, info in self.members.items():
            if info.compress_type == zipfile.ZIP_STORED:
                with self.member(name) as file:
                    while file.read(1 << 20):
                        pass
        return sha256_file(self.path)

    @contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        """Open the file of an array.

        Raises:
            UserError: the array is absent, or an error of the block shows that it is damaged.
        """
        if name not in self.members:
            raise UserError(f"{self.path} holds no {name}, only {', '.join(self.members) or 'nothing'}")
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.members[name]) as file:
                yield file
        except _DAMAGE as error:
            raise self._damaged(error, name) from None

    def _damaged(self, error: Exception, name: str = "") -> UserError:
        subject = f"{self.path}{f', array {name},' if name else ''}"
        if "pickle" in str(error) or "Object arrays" in str(error):
            return UserError(f"{subject} holds pickled objects, which could run code; save plain arrays")
        return UserError(f"{subject} is truncated, damaged or no .npz file ({type(error).__name__}); make it again")


class NpzRows:
    """Rows of an array of a .npz: memory-mapped if uncompressed, otherwise decompressed in order."""

    def __init__(self, file: NpzFile, name: str) -> None:
        self.file, self.name, self.info = file, name, file.members.get(name)
        with file.member(name) as stream:
            self.shape, fortran, self.dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
            self.offset = stream.tell()
            if self.dtype.hasobject:
                raise ValueError("Object arrays")
        if fortran or not self.shape:
            raise UserError(f"{file.path}, array {name}, is not stored row by row")

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, batches: Iterable[range]) -> Iterator[np.ndarray]:
        """Yield the rows of each range.

        Args:
            batches: ranges in rising order.

        Raises:
            UserError: the file is damaged.
        """
        return self._mapped(batches) if self.info.compress_type == zipfile.ZIP_STORED else self._streamed(batches)

    def _mapped(self, batches: Iterable[range]) -> Iterator[np.ndarray]:
        with self.file.path.open("rb") as file:
            # Only the member's local header contains its own lengths; those of the directory may differ.
            file.seek(self.info.header_offset + _LOCAL_HEADER - 4)
            lengths = np.frombuffer(file.read(4), "<u2")  # of the name and the extra field
        start = self.info.header_offset + _LOCAL_HEADER + int(lengths.sum()) + self.offset
        data = np.memmap(self.file.path, self.dtype, "r", start, self.shape)
        for rows in batches:
            yield np.array(data[rows.start : rows.stop])

    def _streamed(self, batches: Iterable[range]) -> Iterator[np.ndarray]:
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with self.file.member(self.name) as stream:
            stream.read(self.offset)
            position = 0
            for rows in batches:
                for start in range(position, rows.start, 256):  # skip in small parts, to limit memory
                    _read(stream, min(256, rows.start - start) * size)
                content = _read(stream, len(rows) * size)
                position = rows.stop
                if position == len(self):
                    stream.read(1)  # at the end of the member zipfile checks its checksum
                yield np.frombuffer(content, self.dtype).reshape(len(rows), *self.shape[1:]).copy()


def _read(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def write_npz(path: str | Path, arrays: dict[str, np.ndarray], streamed: dict[str, tuple]) -> None:
    """Write a .npz atomically, uncompressed as ``np.savez`` does.

    Args:
        path: of the file.
        arrays: arrays by name.
        streamed: name -> (shape, dtype, iterable of parts in the order of the rows).
    """
    complete = {name: (array.shape, array.dtype, [array]) for name, array in arrays.items()}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, (shape, dtype, parts) in (streamed | complete).items():
            # zip64: the size of a streamed array is unknown when zipfile writes the member's header.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, {**header, "shape": tuple(shape)})
                for part in parts:
                    file.write(np.ascontiguousarray(part, dtype).tobytes())
