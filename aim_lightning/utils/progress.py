"""How far a long job is: a bar in a terminal, in a log a plain line now and then."""

import sys
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

from tqdm import tqdm

INTERVAL = 60.0  # seconds between two lines in a log

# (items, what is done with them) to the same items; whoever starts a long loop decides how that is shown.
ProgressFn = Callable[[Sequence, str], Iterable]


def unwatched(items: Sequence, what: str) -> Iterable:
    """The `ProgressFn` that shows nothing."""
    return items


def watched(items: Sequence, what: str) -> Iterable:
    """The `ProgressFn` that shows a `ProgressBar`."""
    with ProgressBar(what, len(items), "items") as report:
        for item in items:
            yield item
            report.advance(1)


class ProgressBar:
    """Context manager; where standard output is no terminal (SLURM, nohup, tee) it prints lines instead of a bar.

    tqdm's bar, not rich's: an exception in a loop over a generator leaves rich's thread behind, and the collector,
    which may run in another bar's thread, then waits for it for ever.

    Args:
        what: is done, the word before the numbers.
        total: how much there is.
        unit: of the numbers, plural.
        done: how much was there before; the speed is that of the rest.
        shown: False on all processes but the one that speaks.
        leave: the bar stays when it is over; in a log there is a last line.
    """

    def __init__(
        self, what: str, total: int, unit: str = "images", done: int = 0, shown: bool = True, leave: bool = False
    ) -> None:
        self.what, self.total, self.unit, self.done, self.before = what, total, unit, done, done
        self.shown, self.leave = shown, leave

    def __enter__(self) -> "ProgressBar":
        in_terminal = self.shown and sys.stdout.isatty()
        self._lines = self.shown and not in_terminal
        options = {"initial": self.done, "unit": f" {self.unit}", "leave": self.leave, "file": sys.stdout}
        self._bar = tqdm(desc=self.what, total=self.total, disable=not in_terminal, **options)
        self._begun = self._told = monotonic()
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        if self._lines and self.leave and self.done > self.before:
            print(self._line(""), flush=True)

    def advance(self, count: int, note: str = "") -> None:
        """So much more is done; `note` is shown behind the numbers."""
        self.done += count
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        if self._lines and monotonic() - self._told >= INTERVAL:
            self._told = monotonic()
            print(self._line(note), flush=True)

    def _line(self, note: str) -> str:
        speed = max(self.done - self.before, 1) / max(monotonic() - self._begun, 1e-9)
        rate = f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
        left = _duration((self.total - self.done) / speed)
        text = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {rate} {self.unit}/s, {left} left"
        return f"{text}, {note}" if note else text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
