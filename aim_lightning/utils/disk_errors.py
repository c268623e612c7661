"""Files that training can do without: a disk that does not take them is told, and training goes on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_told: set[str] = set()


@contextmanager
def tolerate_disk_errors(what: object) -> Iterator[None]:
    """Inside, an OSError ends the block alone; `what`, the file, is named once a process."""
    try:
        yield
    except OSError as error:
        tell_once(f"{what} cannot be written ({error.strerror or error}); training goes on without it")


def tell_once(trouble: str) -> None:
    """Print a warning, unless this process has printed the same one before."""
    if trouble not in _told:
        _told.add(trouble)
        print(f"warning: {trouble}", file=sys.stderr, flush=True)
