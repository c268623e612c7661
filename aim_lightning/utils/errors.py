"""The exceptions that are told in one line, without a traceback."""

import errno

# What gloo says when the process at the other end is gone.
GONE = ("connection closed by peer", "connection reset by peer", "broken pipe")
# A place where this user can never write or read, and one that is full for now.
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """A mistake of the user's or of their files: one line that says what, where and how to mend it.

    The command line prints it without a traceback and ends with exit code 2.
    """


class TransientError(UserError):
    """What another start may mend by itself: a network, or a disk of several nodes, that fails for a while.

    `fit` ends with `exit_code`, with which job.sbatch puts the job back into the queue.
    """

    exit_code = 74


def one_line(error: UserError) -> UserError:
    """The same error without the traceback that a loader worker's gets in front: its last line is Class: message."""
    text = str(error).strip()
    return type(error)(text.splitlines()[-1].partition(": ")[2]) if "\n" in text else error


def disk_mistake(error: OSError, what: object = None) -> UserError | None:
    """An error of the disk in one line: a mistake, or for a full disk a passing fault; None for anything else."""
    place = f"{what or error.filename or 'a file'} cannot be used ({error.strerror})"
    if error.errno in CLOSED:
        return UserError(f"{place}; choose another place")
    return TransientError(f"{place}; make room") if error.errno in FULL else None


def lost_rank(error: BaseException) -> bool:
    """Whether this is what a collective over gloo raises once another rank has ended."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "gloo" in text and any(reason in text for reason in GONE)
