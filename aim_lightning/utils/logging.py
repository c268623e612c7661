"""Log lines for the user on standard output (rank 0), warnings on standard error (any rank), and both streams."""

import functools
import io
import logging
import os
import sys
import warnings
from contextlib import nullcontext
from typing import TextIO

from aim_lightning.utils.process import is_rank_zero

_warned: set[str] = set()


def log(text: str) -> None:
    """Print a line from rank 0."""
    if is_rank_zero():
        _print(text, sys.stdout)


def log_next(text: str) -> None:
    """Print the command to run next, unless AIM_HINTS is 0, as in a script of several commands."""
    if os.environ.get("AIM_HINTS") != "0":
        print(f"next: {text}", flush=True)


def warn(text: str) -> None:
    """Print a warning from any rank."""
    _print(f"warning: {text}", sys.stderr)


def _print(text: str, file: TextIO) -> None:
    # An open bar is cleared and redrawn below the line. Before tqdm is imported, which takes 40 ms, there is none.
    tqdm = sys.modules.get("tqdm")
    with tqdm.tqdm.external_write_mode(file) if tqdm else nullcontext():
        print(text, file=file, flush=True)


def warn_once(text: str) -> None:
    """Print a warning, unless this process has printed the same one before."""
    if text not in _warned:
        _warned.add(text)
        warn(text)


@functools.cache
def log_once(text: str) -> None:
    """Log a decision of the package with the standard library, once per process."""
    logging.getLogger("aim_lightning").info(text)


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


class _Output(io.TextIOWrapper):
    """Text stream that discards its output once the reader of a pipe has exited, as in ``aim-lightning … | head``."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        # The bytes that wait in the buffer, and everything that C libraries write, go there too.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def protect_output() -> None:
    """Make printing independent of the reader and of the encoding: lost pipes are ignored, characters replaced."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # closed by the shell: `>&-`
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        elif type(stream) is io.TextIOWrapper:  # not in a test or a notebook, which replace it
            options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            # `strict`, and in the C locale `surrogateescape`, raise at characters that the encoding lacks.
            errors = "replace" if stream.errors in ("strict", "surrogateescape") else stream.errors
            stream = _Output(stream.detach(), stream.encoding, errors, **options)
        else:
            continue
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # the detached one cannot be used any more
