"""Read token shards in the order of an epoch: shards shuffled, then rows within windows.

A window of several shards bounds memory and reading. The position of a row depends on (seed, epoch) and the manifest
only, and any position is reached by reading its window. A corrupt record may be skipped. Each of its rows is then
replaced by another row of the window, chosen by (seed, epoch, row), and every other row keeps its position.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch

from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.format.record_format import stored_records
from aim_lightning.data.tokens.read.fetch import Fetcher
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.logging import warn_once
from aim_lightning.utils.process import in_background
from aim_lightning.utils.random import hash_uniform, permutation

READING_THREADS = 2  # each holds the bytes of one shard


class Rows(NamedTuple):
    """Rows with one view each: codes (n, tokens) uint16, labels and dataset rows `index` (n,) int64.

    unreadable (n,) bool: True for rows of corrupt records, which `replace_unreadable` fills.
    """

    codes: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    unreadable: np.ndarray

    def take(self, selection) -> "Rows":
        """Return the selected rows.

        Args:
            selection: any NumPy index of the first dimension.
        """
        return Rows(*(column[selection] for column in self))

    @staticmethod
    def join(parts: list["Rows"]) -> "Rows":
        """Concatenate rows.

        Args:
            parts: at least one.
        """
        return parts[0] if len(parts) == 1 else Rows(*map(np.concatenate, zip(*parts, strict=True)))


@dataclass
class ShardReader:
    """Reads the shards of one directory.

    Args:
        manifest: manifest of the directory.
        url: maps a shard's name to its path or URL; picklable, for loader workers started by spawn.
        fetcher: reads the files.
        skip_corrupt: mark the rows of corrupt records as unreadable instead of raising an error.
    """

    manifest: TokenManifest
    url: Callable[[str], str]
    fetcher: Fetcher = field(default_factory=Fetcher)
    skip_corrupt: bool = False

    def read(self, shard: int, choose_view: Callable[[np.ndarray], np.ndarray]) -> Rows:
        """Read all rows of a shard in stored order.

        Args:
            shard: index into the manifest's shards.
            choose_view: maps dataset rows (n,) to view numbers (n,).

        Raises:
            UserError: the shard cannot be read, or a record is corrupt and skip_corrupt is off.
        """
        expected, first = self.manifest.shards[shard], int(self.manifest.first_rows[shard])
        size = expected.rows
        codes, labels = np.zeros((size, self.manifest.num_tokens), np.uint16), np.zeros(size, np.int64)
        rows = Rows(codes, labels, np.arange(first, first + size), np.zeros(size, bool))
        url = self.url(expected.name)
        fetched = self.fetcher.fetch(url, expected.sha256)
        for record in stored_records(fetched.data, expected.rows, self.manifest, url, fetched.intact):
            if not record.fault:
                views = choose_view(rows.index[record.part])
                rows.codes[record.part] = record.codes[np.arange(len(views)), views]
                rows.labels[record.part] = record.labels
            elif self.skip_corrupt:
                rows.unreadable[record.part] = True
                warn_once(f"skipped a corrupt record: {record.fault}")
            else:
                raise UserError(f"{record.fault}, or skip it with data.on_corrupt skip")
        return rows


@dataclass(frozen=True)
class Window:
    """Positions [start, stop) of the global order, filled from these shards (indices into the manifest)."""

    number: int
    start: int
    stop: int
    shards: tuple[int, ...]


def plan_windows(manifest: TokenManifest, window_rows: int, seed: int, epoch: int) -> list[Window]:
    """Cut the shuffled shards into windows.

    Args:
        manifest: manifest of the directory.
        window_rows: least number of rows per window; the last may be smaller.
        seed: seed of the order of the shards.
        epoch: epoch of that order.
    """
    windows, shards, start, stop, rows = [], [], 0, 0, manifest.rows
    for shard in permutation(len(manifest.shards), "shard_order", seed, epoch):
        shards.append(int(shard))
        stop += manifest.shards[shard].rows
        # The last window takes the remaining shards, even if they have fewer rows.
        if stop - start >= window_rows or stop == rows:
            windows.append(Window(len(windows), start, stop, tuple(shards)))
            shards, start = [], stop
    return windows


class WindowedRows:
    """Random access to the global order of one epoch for increasing slices; holds at most two windows."""

    def __init__(self, reader: ShardReader, window_rows: int, seed: int, epoch: int) -> None:
        self.reader = reader
        self.seed = seed
        self.epoch = epoch
        self.windows = plan_windows(reader.manifest, window_rows, seed, epoch)
        self.loaded: dict[int, Rows] = {}

    def take(self, positions: slice) -> Rows:
        """Return the rows at positions of the global order.

        Args:
            positions: a slice behind that of the previous call; windows that end before it are released.
        """
        self.loaded = {n: rows for n, rows in self.loaded.items() if self.windows[n].stop > positions.start}
        parts = []
        for window in self.windows:
            start, stop = max(positions.start, window.start), min(positions.stop, window.stop)
            if start < stop:
                if window.number not in self.loaded:
                    self.loaded[window.number] = self._read(window)
                parts.append(self.loaded[window.number].take(slice(start - window.start, stop - window.start)))
        return Rows.join(parts)

    def _read(self, window: Window) -> Rows:
        def read_share(thread: int) -> list[Rows]:
            return [self.reader.read(shard, self._view) for shard in window.shards[thread::READING_THREADS]]

        # Reading, hashing and gathering release Python's lock, so a second thread shortens the wait. An executor's
        # threads would outlast Ctrl-C while a read blocks.
        shares = [in_background(partial(read_share, thread)) for thread in range(READING_THREADS)]
        parts = zip_longest(*(share.result() for share in shares))
        rows = Rows.join([part for group in parts for part in group if part is not None])
        replace_unreadable(rows, self.seed, self.epoch)
        return rows.take(permutation(len(rows.index), "window_order", self.seed, self.epoch, window.number))

    def _view(self, index: np.ndarray) -> np.ndarray:
        # By dataset row, not by position: the view does not depend on the number of ranks.
        uniform = hash_uniform("view", self.seed, self.epoch, torch.from_numpy(index))
        return (uniform * self.reader.manifest.views).long().numpy()


def replace_unreadable(rows: Rows, seed: int, epoch: int) -> None:
    """Overwrite unreadable rows in place by readable ones; they stay marked as unreadable.

    Args:
        rows: rows of one window.
        seed: seed of the choice.
        epoch: epoch of the choice.

    Raises:
        UserError: no row of the window is readable.
    """
    unreadable, readable = np.flatnonzero(rows.unreadable), np.flatnonzero(~rows.unreadable)
    if not len(unreadable):
        return
    if not len(readable):
        raise UserError(f"no record of a whole shuffle window is readable (from row {rows.index.min()}); restore it")
    # A hash of (seed, epoch, row) instead of a generator: the choice does not depend on the other corrupt rows.
    uniform = hash_uniform("replacement", seed, epoch, torch.from_numpy(rows.index[unreadable]))
    chosen = readable[(uniform * len(readable)).long().numpy()]
    for column in (rows.codes, rows.labels, rows.index):
        column[unreadable] = column[chosen]
