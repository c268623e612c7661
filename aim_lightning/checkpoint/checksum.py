"""Add and verify checksums of `torch.save` files; `torch.load` verifies none.

Such a file is a zip archive. A CRC-32 of all other bytes is stored in its comment, the last bytes of the file.
"""

import errno
import os
import re
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 22  # bytes
END, END_SIZE = b"PK\x05\x06", 22  # the record that ends a zip archive; its last two bytes hold the comment's length
COMMENT = b"aim crc32 %08x"
COMMENT_SIZE = len(COMMENT % 0)


class DamagedArchive(Exception):
    """Raised for an archive whose bytes changed; the message names the damaged part."""


def seal_archive(path: Path) -> None:
    """Add the checksum of the whole file to an archive without a comment.

    Raises:
        DamagedArchive: the file does not end like an archive of `torch.save`.
    """
    with path.open("r+b") as file:
        file.seek(-END_SIZE, os.SEEK_END)
        end = file.read()
        if not end.startswith(END) or end[-2:] != b"\0\0":
            raise DamagedArchive("it does not end as an archive of torch.save")
        # The comment's length is part of the checksum, so it is written first.
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", COMMENT_SIZE))
        size = file.tell()
        file.seek(0)
        checksum = _checksum(file, size)
        file.write(COMMENT % checksum)


def verify_archive(path: Path) -> None:
    """Read the whole file and compare checksums, once per process for an unchanged file.

    Archives without a seal are compared member by member, without the padding between members. Archives that torch
    wrote without checksums have zeros in their place, so nothing is compared.

    Raises:
        DamagedArchive: the file is truncated, or bytes changed.
        OSError: the system cannot read it; the result is not cached.
    """
    state = path.stat()
    if fault := _fault(str(path), state.st_size, state.st_mtime_ns, state.st_ino):
        raise DamagedArchive(fault)


@lru_cache(maxsize=64)
def _fault(path: str, size: int, *_state: int) -> str | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a key of the cache, so a str)
            file.seek(max(size - END_SIZE - COMMENT_SIZE, 0))
            tail = file.read()
            if sealed := re.fullmatch(END + rb".{16}.\x00aim crc32 ([0-9a-f]{8})", tail, re.DOTALL):
                file.seek(0)
                same = _checksum(file, size - COMMENT_SIZE) == int(sealed[1], 16)
                return None if same else "its checksum differs"
        if tail[-END_SIZE:-18] != END:
            return "its end is missing or changed"
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() if any(member.CRC for member in archive.infolist()) else None
        return bad and f"the checksum of {bad} differs"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        return str(error) or type(error).__name__
    except OSError as error:
        # Changed bytes can make zipfile seek before the start of the file; any other error is the system's.
        if error.errno != errno.EINVAL:
            raise
        return str(error)


def _checksum(file: BinaryIO, size: int) -> int:
    """Return the CRC-32 of the next `size` bytes."""
    checksum = 0
    while size:
        if not (chunk := file.read(min(CHUNK, size))):
            raise EOFError("the file became shorter while it was read")
        checksum, size = zlib.crc32(chunk, checksum), size - len(chunk)
    return checksum


def drop_from_cache(path: Path) -> None:
    """Flush a file and drop it from the page cache, so that the next read comes from the disk."""
    with path.open("rb") as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
