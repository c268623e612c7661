"""Log lines for the user: plain text on standard output from rank 0, warnings on standard error."""

import sys

from aim_lightning.utils.process import is_rank_zero

_warned: set[str] = set()


def log(text: str) -> None:
    """Print a line from rank 0."""
    if is_rank_zero():
        print(text, flush=True)


def warn_once(text: str) -> None:
    """Print a warning, unless this process has printed the same one before."""
    if text not in _warned:
        _warned.add(text)
        print(f"warning: {text}", file=sys.stderr, flush=True)
