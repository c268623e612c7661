"""Read files of `torch.save`, and separate a damaged file from a transient error of the disk."""

import errno
import os
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from aim_lightning.checkpoint.checksum import verify_archive
from aim_lightning.utils.errors import CLOSED, TransientError, UserError, disk_mistake, first_line
from aim_lightning.utils.process import node_name

WAITS = (0.5, 2.0, 5.0)  # seconds between attempts to read
# Errors of a system short of memory or of a shared disk, which pass. torch puts their text into its RuntimeErrors.
TRANSIENT = ("EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR", "EREMOTEIO", "ENODEV")
TRANSIENT_TEXTS = (*(os.strerror(getattr(errno, name)) for name in TRANSIENT), "can't allocate memory")


class UnreadableFile(UserError):
    """A file that cannot be used: missing, foreign, or of another version; its bytes may be intact."""


class DamagedFile(UnreadableFile):
    """A file whose checksums, archive or pickle are broken."""


def read_pickle(path: str | Path, role: str, archive: bool = False, verify: bool = True) -> Any:
    """Read a file of `torch.save` onto the CPU without running code from it.

    Args:
        path: the file.
        role: noun for the file in errors.
        archive: require a zip archive; files of torch before 1.6 are plain pickles without checksums.
        verify: compare checksums first. Without it tensors stay memory-mapped and are not read here.

    Raises:
        UnreadableFile: it does not exist.
        DamagedFile: its checksums, archive or pickle are broken.
        TransientError: the system still cannot read it after several attempts.
        UserError: permission is denied.
    """
    waits = iter(WAITS)
    while True:
        try:
            return _read(Path(path), role, archive, verify)
        except (OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno in CLOSED:
                raise disk_mistake(error, f"{role} {path}") from None
            if (wait := next(waits, None)) is None:
                fault = f"{role} {path} cannot be read now ({system_fault(error)}); nothing is changed"
                raise TransientError(f"node {node_name()}: {fault}") from error
            time.sleep(wait)


def _read(path: Path, role: str, archive: bool, verify: bool) -> Any:
    """Read once; errors of the system are raised unchanged."""
    if not path.is_file():
        raise UnreadableFile(f"{role} {path} {'is no regular file' if path.exists() else 'does not exist'}")
    zipped = archive or zipfile.is_zipfile(path)
    try:
        if zipped and verify:
            verify_archive(path)
        with warnings.catch_warnings(action="ignore"):  # torch's remarks about foreign pickles
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # the unpickler raises any type for bytes that are not a pickle
        # Random bytes in a plain pickle may ask for huge sizes: then MemoryError means damage.
        from_content = isinstance(error, MemoryError) and not zipped
        if system_fault(error) and not from_content:
            raise
        raise DamagedFile(f"{role} {path} is damaged or not a {role} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    text = str(error)
    # torch advises to load with weights_only=False, which runs code from the file.
    if "weights only" in text.lower() or "weights_only" in text:
        if "TorchScript" in text:
            return "it is a TorchScript archive"
        return "it holds something else than tensors and plain values"
    # torch explains a damaged archive in five sentences.
    return first_line(error).partition(". ")[0]


def system_fault(error: BaseException) -> str | None:
    """Return the system's message where reading or writing failed, None where the content is at fault."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    text = str(error) if isinstance(error, RuntimeError) else ""
    return next((reason for reason in TRANSIENT_TEXTS if reason in text), None)
