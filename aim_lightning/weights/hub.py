"""Model repositories of the Hugging Face hub."""

import errno
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from aim_lightning.utils.errors import UserError
from aim_lightning.weights.files import CONFIG, INDEX, PICKLED, PICKLED_INDEX, SAFETENSORS, main_file

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
WANTED = (CONFIG, SAFETENSORS, INDEX, "model-*.safetensors")


def local_directory(source: str | Path, **options: Any) -> Path:
    """A directory or file itself, or the local copy of a hub repository.

    Args:
        source: a path that exists, or a hub id such as ``hp-l33/aim-base``.
        **options: of `huggingface_hub.snapshot_download`: revision, cache_dir, token, local_files_only, …

    Raises:
        UserError: neither, or the hub cannot be reached or does not have it.
    """
    if Path(source).exists():
        return Path(source)
    if not REPOSITORY.fullmatch(str(source)):
        raise UserError(f"{source} does not exist, and it is no hub id (OWNER/NAME)")
    return download(str(source), WANTED, or_else=(PICKLED, PICKLED_INDEX, "pytorch_model-*.bin"), **options)


def download(repository: str, patterns: tuple[str, ...], or_else: tuple[str, ...] = (), **options: Any) -> Path:
    """Files of a repository that match; `or_else` when there are no weights among them.

    Raises:
        UserError: no such repository or revision, or the hub cannot be reached.
    """
    try:
        directory = Path(snapshot_download(repository, allow_patterns=list(patterns), **options))
        if or_else and not any((directory / name).is_file() for name in (SAFETENSORS, INDEX)):
            directory = Path(snapshot_download(repository, allow_patterns=[*patterns, *or_else], **options))
    except Exception as error:  # the HTTP library below it has errors of its own, another one in every release
        raise UserError(hub_mistake(repository, error)) from None
    if or_else and main_file(directory) is None:
        raise UserError(f"the hub's {repository} holds no {SAFETENSORS} and no {PICKLED}")
    return directory


def hub_mistake(repository: str, error: Exception) -> str:
    """One line for what the hub's client raised."""
    reason = _disk_error(error)
    if reason:
        return f"the files of {repository} could not be written here ({reason}); make room, or give another directory"
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return f"there is no {repository} here, and the hub has no such repository ({first})"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub's {repository} has no such revision ({first})"
    if isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
        return f"the hub refused {repository} ({first})"
    return f"{repository} is not on this machine and the hub cannot be reached ({first}); try again with a connection"


def _disk_error(error: BaseException | None) -> str | None:
    """The system's words where this machine's disk is to blame, wherever in the chain of causes; else None."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else _number_in(str(error))
        if number in DISK or (isinstance(error, OSError) and error.filename):
            return os.strerror(number) if number else str(error)
        error = error.__cause__ or error.__context__
    return None


def _number_in(text: str) -> int | None:
    """Of the system's error in what the hub's client makes of it, which is partly written in Rust."""
    found = re.search(r"os error (\d+)", text)
    return int(found[1]) if found else None
