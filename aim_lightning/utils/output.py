"""Standard output and standard error that never end a command."""

import io
import os
import sys


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
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `>&-`
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
