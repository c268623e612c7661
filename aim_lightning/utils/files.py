"""Atomic writes, hashes, and handling of disk errors."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import warn_once

# Some file systems cannot flush directories, and some directories allow writing files but not listing them.
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
ABANDONED_AFTER = 3600  # seconds without a write, after which another machine's temporary file counts as abandoned


def make_directory(path: Path) -> None:
    """Create a directory and its parents.

    Raises:
        NotADirectoryError: a parent is a file, or cannot be created, as in /proc. The command line prints one line.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError) as error:
        raise NotADirectoryError(errno.ENOTDIR, "no directory can be created there", str(path)) from error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` on success, remove it on any error.

    A crash leaves either the old file or the new one.

    Args:
        path: final name; its directory is created.
    """
    path = Path(path)
    make_directory(path.parent)
    # Processes of two nodes may share a process id and a directory.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        # Content first, then the new name: after a crash the name must not point to an empty file.
        _flush(temporary)
        temporary.replace(path)
        # The caller may delete an older file next; the new name must be on disk by then.
        _flush(path.parent, tolerated=CANNOT_FLUSH)
    except OSError as error:
        # A failed write to an open file names no file, and the temporary name is not the one of the caller.
        error.filename = str(path) if error.filename in (None, str(temporary)) else error.filename
        raise
    finally:
        # On a read-only disk this fails even without the file, and would hide the error above.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path, tolerated: tuple[int, ...] = ()) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in tolerated:
            raise


def remove_abandoned(*directories: Path) -> None:
    """Remove the temporary files of `atomic_path` whose process is dead, or that are an hour old.

    Those of live processes stay: another job may be about to rename its file.

    Args:
        *directories: only their own entries are searched. Processes of other machines are judged by age.
    """
    owner = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)-[0-9a-f]+\.tmp")
    for path in itertools.chain.from_iterable(directory.glob(".*.tmp") for directory in directories):
        match = owner.fullmatch(path.name)
        with contextlib.suppress(FileNotFoundError):  # renamed to its final name in the meantime
            old = time.time() - path.stat().st_mtime > ABANDONED_AFTER
            if old or (match and not is_running(int(match[1]))):
                path.unlink()


def is_running(process_id: int) -> bool:
    """Return True if a process of this machine has this id."""
    try:
        os.kill(process_id, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # a process of another user
    return True


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory next to `path`; rename it to `path` on success, remove it on any error.

    An empty directory is replaced, and one that contains only files of the names just written (an earlier version).

    Raises:
        UserError: `path` is a file, a directory with other content, or contains the current directory.
    """
    path, here = Path(path), Path.cwd()
    if path.resolve() in (here, *here.parents):
        raise UserError(f"{path} is the current directory or above it and cannot be replaced; give another directory")
    present = _names(path)
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if foreign := sorted(present - _names(temporary)):
            raise UserError(f"{path} already holds {foreign[0]}; give another directory, or remove it first")
        for file in temporary.iterdir():
            _flush(file)
        if present:
            shutil.rmtree(path)
        temporary.replace(path)
        _flush(path.parent, tolerated=CANNOT_FLUSH)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _names(directory: Path) -> set[str]:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; give the name of a directory")
    return {entry.name for entry in directory.iterdir()} if directory.exists() else set()


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Convert an OSError of the block to a UserError that names the path.

    Raises:
        UserError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error}); give another place") from error


@contextlib.contextmanager
def tolerate_disk_errors(path: object) -> Iterator[None]:
    """End the block at an OSError and warn once per process; for files that a command can do without."""
    try:
        yield
    except OSError as error:
        warn_once(f"{path} cannot be written ({error.strerror or error}); continuing without it")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, role: str, is_valid: Callable[[Any], bool] = lambda content: True) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        role: noun for the file in the error, such as "results file".
        is_valid: returns True for content that this project writes.

    Raises:
        UserError: the file is missing, no JSON, or has other content.
    """
    try:
        require_regular(path)
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{role} {path} does not exist") from None
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{role} {path} is not readable JSON ({error})") from None
    if not is_valid(content):
        raise UserError(f"{path} was not written by this project; move it away")
    return content


def require_regular(path: str | Path) -> None:
    """Check that an existing path is a regular file: reading a pipe blocks forever, and a device may have no end.

    Args:
        path: the file. A missing one passes, for the caller's own error.

    Raises:
        UserError: it is a pipe, a socket or a device.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is not a regular file; remove it")


def sha256_file(path: str | Path) -> str:
    """Return the hex sha256 of a file."""
    require_regular(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def printable(name: str) -> str:
    r"""Return a file name as valid Unicode: bytes that are not UTF-8 become escapes such as `\udcff`."""
    # Python represents such bytes as surrogates, which cannot be printed or written as JSON.
    return name.encode("utf-8", "backslashreplace").decode()
