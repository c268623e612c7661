"""Log lines for the user: plain text on standard output from rank 0, warnings on standard error from any rank."""

import logging
import os
import sys
import warnings

from aim_lightning.utils.process import is_rank_zero

_warned: set[str] = set()


def log(text: str) -> None:
    """Print a line from rank 0."""
    if is_rank_zero():
        print(text, flush=True)


def log_next(text: str) -> None:
    """Print the command to run next, unless AIM_HINTS is 0, as in a script of several commands."""
    if os.environ.get("AIM_HINTS") != "0":
        print(f"next: {text}", flush=True)


def warn(text: str) -> None:
    """Print a warning from any rank."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def warn_once(text: str) -> None:
    """Print a warning, unless this process has printed the same one before."""
    if text not in _warned:
        _warned.add(text)
        warn(text)


def show_log() -> None:
    """Print what the package's modules log with the standard library, and warnings of libraries in one line."""
    logger = logging.getLogger("aim_lightning")
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler())
        logger.setLevel(logging.INFO)
    # Python's format shows the path and the line of the library that warns.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"


class _ConsoleHandler(logging.Handler):
    """Handler that passes records of the standard library's loggers to `log` and `warn`."""

    def emit(self, record: logging.LogRecord) -> None:
        (warn if record.levelno >= logging.WARNING else log)(self.format(record))
