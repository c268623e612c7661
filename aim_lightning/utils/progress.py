"""Progress of long loops: a tqdm bar in a terminal, one plain line per minute in a log."""

import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from shutil import get_terminal_size
from time import monotonic

from tqdm import tqdm

from aim_lightning.utils.process import is_rank_zero

INTERVAL = 60.0  # seconds between two lines in a log


def progress(items: Collection, name: str, unit: str = "items") -> Iterator:
    """Yield the items of a loop and show its progress on rank 0.

    Args:
        items: the items of the loop.
        name: text before the numbers.
        unit: plural noun for the items.
    """
    with ProgressBar(name, len(items), unit, shown=is_rank_zero()) as bar:
        for item in items:
            yield item
            bar.advance(1)


@dataclass(eq=False)
class ProgressBar(AbstractContextManager):
    """Context manager that shows a bar, or prints lines where standard output is no terminal (SLURM, nohup, tee).

    tqdm's bar, not rich's: an exception in a loop over a generator leaves rich's thread behind. The garbage collector,
    when it runs in another bar's thread, then waits for that thread forever.

    Args:
        name: text before the numbers.
        total: number of items; None = unknown.
        unit: plural noun for the items.
        done: number of items done by an earlier process; they do not count towards the speed.
        shown: False on all ranks but one.
        leave: keep the bar after the loop; in a log, print a last line.
        early: in a log, print the first line immediately, not after a minute.
    """

    name: str
    total: int | None
    unit: str = "images"
    done: int = 0
    shown: bool = True
    leave: bool = False
    early: bool = False

    def __post_init__(self) -> None:
        self.initial = self._printed_done = self.done
        in_terminal = self.shown and sys.stdout.isatty()
        self._prints_lines = self.shown and not in_terminal
        options = {"initial": self.done, "unit": f" {self.unit}", "leave": self.leave, "file": sys.stdout}
        options["ncols"] = get_terminal_size().columns  # 80 in a terminal that reports 0, in which tqdm shows no bar
        self._bar = tqdm(desc=self.name, total=self.total, disable=not in_terminal, **options)
        self._started = monotonic()
        self._printed = self._started - INTERVAL if self.early else self._started

    def __exit__(self, *_) -> None:
        self._bar.close()
        if self._prints_lines and self.leave and self.done > self._printed_done:
            print(self._line(""), flush=True)

    def advance(self, count: int, note: str = "", intervals: int = 1) -> None:
        """Add finished items.

        Args:
            count: number of items finished since the last call.
            note: text after the numbers.
            intervals: smallest number of minutes between two lines of a log.
        """
        self.done += count
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        if self._prints_lines and monotonic() - self._printed >= intervals * INTERVAL:
            self._printed, self._printed_done = monotonic(), self.done
            print(self._line(note), flush=True)

    def _line(self, note: str) -> str:
        speed = max(self.done - self.initial, 1) / max(monotonic() - self._started, 1e-9)
        rate = f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
        text = f"{self.name}: {self.done:,}"
        if self.total is None:
            text += f" {self.unit}, {rate} {self.unit}/s"
        else:
            left = _duration((self.total - self.done) / speed)
            text += f" of {self.total:,} {self.unit}, {rate} {self.unit}/s, {left} left"
        return f"{text}, {note}" if note else text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
