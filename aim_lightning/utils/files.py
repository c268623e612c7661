"""Files that appear whole or not at all, and hashes of them."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aim_lightning.utils.errors import UserError

# Directories of some file systems cannot be flushed; a directory may let its files be written but not listed.
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
ABANDONED_AFTER = 3600  # seconds without a byte, after which a temporary file of another machine counts as left behind


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; renamed to it on success, removed on any error.

    The content is flushed to disk before the rename, so that a crash leaves the old file or the new one; the directory
    after it, so that what is removed next cannot be gone while the new name is not there yet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of two nodes may share a number and a directory.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_directory(directory: Path) -> None:
    """Put the names in a directory on disk, where its file system can do so."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise


def abandoned(directory: Path) -> list[Path]:
    """Temporary files that `atomic_path` left in a directory: of dead processes of this machine, or an hour old."""
    owner = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)-[0-9a-f]+\.tmp")
    found = []
    for path in directory.glob(".*.tmp"):
        match = owner.fullmatch(path.name)
        if (match and not _runs(int(match[1]))) or _age(path) > ABANDONED_AFTER:
            found.append(path)
    return found


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _age(path: Path) -> float:
    """Seconds since it was written to; 0 where it has become a whole file meanwhile."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; renamed to it on success, removed on any error.

    An empty directory, or one that holds only files of the names just written (an earlier version), is replaced.

    Raises:
        UserError: `path` is a file, a directory with anything else in it, or the one that we stand in.
    """
    path, here = Path(path), Path.cwd()
    if path.resolve() in (here, *here.parents):
        raise UserError(f"{path} is the current directory or above it and cannot be replaced; give another directory")
    present = _names(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        foreign = sorted(present - _names(temporary))
        if foreign:
            raise UserError(f"{path} already holds {foreign[0]}; give another directory, or remove it first")
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if present:
            shutil.rmtree(path)
        temporary.replace(path)
        _flush_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _names(directory: Path) -> set[str]:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; give the name of a directory")
    return {entry.name for entry in directory.iterdir()} if directory.exists() else set()


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What the system says when `path` cannot be written, as one line.

    Raises:
        UserError: no such place, no permission, no space, …
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error}); give another place") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read JSON; `what` names the file's role in the error.

    Raises:
        UserError: the file is missing or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist") from None
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{what} {path} is not readable JSON ({error})") from None


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
