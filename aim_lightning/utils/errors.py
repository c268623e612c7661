"""Exceptions that the command line prints in one line, without a traceback."""

import difflib
import errno
import re
from collections.abc import Iterable, Sequence

# Messages of gloo after the process at the other end has exited.
GONE = ("connection closed by peer", "connection reset by peer", "broken pipe")
# The first cannot succeed for this user and path; the second can after files are removed.
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """A user's mistake, in one line: where it is, what is wrong, and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


class TransientError(UserError):
    """A failure that a later start may not meet, such as of a network or of a shared disk.

    `fit` exits with `exit_code`, upon which job.sbatch requeues the job.
    """

    exit_code = 74


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: UserError) -> UserError:
    """Return the same error without a loader worker's traceback, whose last line is "Class: message"."""
    text = str(error).strip()
    return type(error)(text.splitlines()[-1].partition(": ")[2]) if "\n" in text else error


def disk_mistake(error: OSError, name: object = None) -> UserError | None:
    """Convert a disk error to one line: a UserError, a TransientError for a full disk, None for any other error.

    Args:
        error: the system's error.
        name: of the file, where the error has none.
    """
    fact = f"{name or error.filename or 'a file'} cannot be used ({error.strerror})"
    if error.errno in CLOSED:
        return UserError(f"{fact}; choose another path")
    return TransientError(f"{fact}; free disk space") if error.errno in FULL else None


def memory_mistake(error: BaseException) -> UserError | None:
    """Convert a lack of memory, of the machine or of a GPU, to one line; None for any other error."""
    # By name, since this module does not import torch.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not named and "DefaultCPUAllocator" not in str(error):
        return None
    size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    fact = f"out of memory{f' (tried to allocate {size[1]})' if size else ''}"
    return UserError(f"{fact}; lower the batch size (for training, data.max_device_batch_size) or the image size")


def killed_worker(error: BaseException | None) -> TransientError | None:
    """Return one line for the death of a loader process; None for any other error.

    Torch raises its error in the main thread, from a signal handler or while it waits for a batch.

    Args:
        error: exception of a command; its causes are examined too.
    """
    while error is not None:
        match = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.+)", str(error), re.DOTALL)
        if isinstance(error, RuntimeError) and match:
            reason = "killed" if "Killed" in match[2] else match[2].strip().splitlines()[0].rstrip(". ")
            fact = f"loader process {match[1]} ended ({reason}), possibly for lack of memory"
            return TransientError(f"{fact}; lower data.num_workers or give the job more memory")
        error = error.__cause__ or error.__context__
    return None


def suggest(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the most similar name or abbreviated name, or an empty text."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1)
    if not close and len(name) > 1:  # lr is short for base_learning_rate, cfg for cfg_scale
        initials = {long: "".join(word[:1] for word in long.split("_")) for long in names}
        close = [long for long in names if initials[long].endswith(name) or long.startswith(f"{name}_")]
    return f"; did you mean {close[0]}?" if close else ""


def shorten(names: Sequence[object], limit: int | None) -> str:
    """Join names with commas; of more than the limit, count the rest."""
    more = f" and {len(names) - limit} more" if limit is not None and len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def lost_rank(error: BaseException) -> bool:
    """Return True for the error of a gloo collective after another rank has exited."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "gloo" in text and any(reason in text for reason in GONE)
