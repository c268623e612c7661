"""Reading what torch.save wrote, and telling a damaged file from a disk that fails for a moment."""

import errno
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aim_lightning.checkpoint.checksum import verify_archive
from aim_lightning.utils.errors import CLOSED, TransientError, UserError, disk_mistake
from aim_lightning.utils.process import node_name

WAITS = (0.5, 2.0, 5.0)  # seconds between attempts to read
# What a system without room or a disk of several nodes says for a while; torch puts it into its own errors.
PASSING = ("EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR", "EREMOTEIO", "ENODEV")
PASSING_WORDS = (*(os.strerror(getattr(errno, name)) for name in PASSING), "can't allocate memory")


class UnreadableFile(UserError):
    """The file itself is at fault: missing, damaged or foreign. Reading it again would say the same."""


def read_pickle(path: str | Path, what: str, archive: bool = False, verify: bool = True) -> Any:
    """What torch.save wrote, its checksums compared, onto the CPU; no code in it is run.

    Args:
        path: the file.
        what: its role, for errors.
        archive: whether it must be a zip archive; files of torch before 1.6 are none, and have no checksums.
        verify: False leaves the checksums out: of an archive nothing is read then but the values between the tensors.

    Raises:
        UnreadableFile: missing, damaged or foreign.
        TransientError: the system cannot read it now, after several attempts.
        UserError: it may not be read.
    """
    return _patiently(lambda: _read(Path(path), what, archive, verify), f"{what} {path}")


def _patiently(read: Callable[[], Any], what: str) -> Any:
    for wait in (*WAITS, None):
        try:
            return read()
        except (OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno in CLOSED:
                raise disk_mistake(error, what) from None
            if wait is None:
                fault = f"node {node_name()}: {what} cannot be read now ({system_fault(error)})"
                raise TransientError(f"{fault}; it may well be whole, so nothing is changed") from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def _read(path: Path, what: str, archive: bool, verify: bool) -> Any:
    """One attempt; what only the system is to blame for is raised as it is."""
    if not path.is_file():
        raise UnreadableFile(f"{what} {path} does not exist")
    zipped = archive or zipfile.is_zipfile(path)
    try:
        if zipped and verify:
            verify_archive(path)
        with warnings.catch_warnings(action="ignore"):  # torch's remarks about foreign pickles
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # bytes that are no pickle can make the unpickler raise anything
        senseless = isinstance(error, MemoryError) and not zipped  # sizes that random bytes ask for
        if system_fault(error) and not senseless:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "Weights only" in reason:  # torch would advise to run the code
            reason = "it holds something else than tensors and plain values"
        raise UnreadableFile(f"{what} {path} is damaged or no {what} ({reason})") from None


def system_fault(error: BaseException) -> str | None:
    """The system's words where it failed, whatever is in the file; None where the content is at fault."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    text = str(error) if isinstance(error, RuntimeError) else ""
    return next((words for words in PASSING_WORDS if words in text), None)
