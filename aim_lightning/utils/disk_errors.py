"""Files that training can do without: a disk that does not take them is told, and training goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

from aim_lightning.utils.logging import warn_once


@contextmanager
def tolerate_disk_errors(what: object) -> Iterator[None]:
    """Inside, an OSError ends the block alone; `what`, the file, is named once a process."""
    try:
        yield
    except OSError as error:
        warn_once(f"{what} cannot be written ({error.strerror or error}); training goes on without it")
