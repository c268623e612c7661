"""Download model repositories of the Hugging Face hub, with errors in one line."""

import errno
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import errors, snapshot_download

from aim_lightning.utils.errors import UserError, first_line
from aim_lightning.weights.source import CONFIG, INDEX, PICKLED, PICKLED_INDEX, SAFETENSORS, main_file

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
WANTED = [CONFIG, SAFETENSORS, INDEX, "model-*.safetensors"]


def local_directory(source: str | Path, **options: Any) -> Path:
    """Return a directory or file itself, or the local copy of a hub repository.

    Args:
        source: a path that exists, or a hub id such as ``hp-l33/aim-base``.
        **options: of `huggingface_hub.snapshot_download`: revision, cache_dir, token, local_files_only, …

    Raises:
        UserError: neither exists, or the hub cannot be reached.
    """
    if Path(source).exists():
        return Path(source)
    if not REPOSITORY.fullmatch(str(source)):
        raise UserError(f"{source} does not exist, and it is not a hub id (OWNER/NAME)")
    get = partial(ask_hub, snapshot_download, str(source), **options)
    directory = Path(get(allow_patterns=WANTED))
    if not any((directory / name).is_file() for name in (SAFETENSORS, INDEX)):
        directory = Path(get(allow_patterns=[*WANTED, PICKLED, PICKLED_INDEX, "pytorch_model-*.bin"]))
    if main_file(directory) is None:
        raise UserError(f"the hub's {source} holds no {SAFETENSORS} and no {PICKLED}")
    return directory


def ask_hub(call: Callable[..., Any], repository: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of the hub's client, with errors in one line.

    Args:
        call: the function; takes the repository first.
        repository: OWNER/NAME on the hub.
        *arguments: of the function.
        **options: of the function.

    Raises:
        UserError: the repository or revision does not exist, the hub cannot be reached, or the disk is full.
    """
    try:
        return call(repository, *arguments, **options)
    except Exception as error:  # the client's HTTP library has other errors in each release
        raise UserError(_mistake(repository, error)) from None


def _mistake(repository: str, error: Exception) -> str:
    """Return one line for an error of the hub's client."""
    if reason := _disk_error(error):
        fact = f"the files of {repository} could not be written here ({reason})"
        return f"{fact}; free disk space or give another directory"
    first = first_line(error)
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return f"there is no {repository} here, and the hub has no such repository ({first})"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's {repository} has no such revision ({first})"
    if isinstance(error, errors.HfHubHTTPError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"the hub refused {repository} ({first})"
    return f"{repository} is not on this machine and the hub cannot be reached ({first}); try again with a connection"


def _disk_error(error: BaseException | None) -> str | None:
    """Return the system's message where the local disk failed, None for any other error."""
    # The client wraps errors of the disk several times.
    while error is not None:
        # The client's Rust part passes on the system's error as text only.
        text = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(text[1]) if text else None
        if number in DISK or (isinstance(error, OSError) and error.filename):
            return os.strerror(number) if number else str(error)
        error = error.__cause__ or error.__context__
    return None
