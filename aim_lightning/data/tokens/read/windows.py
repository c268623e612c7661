"""The global order of token rows: shards shuffled, then rows shuffled within windows of several shards.

A window bounds memory and reading: a row's place depends on (seed, epoch) and the manifest alone, and any position
can be reached by reading its window only. Where corrupt records are skipped, another row of the window takes the place
of each of their rows, chosen by (seed, epoch, row): every other row keeps its place.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.read.reader import Rows, ShardReader
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.random import hash_uniform, permutation

READING_THREADS = 2  # each holds a shard's bytes


@dataclass(frozen=True)
class Window:
    """Positions [start, stop) of the global order, filled from these shards (indices into the manifest)."""

    number: int
    start: int
    stop: int
    shards: tuple[int, ...]


def plan_windows(manifest: TokenManifest, window_rows: int, seed: int, epoch: int) -> list[Window]:
    """Cut the shuffled shards into windows of at least window_rows rows (the last may be smaller)."""
    windows, shards, start, stop = [], [], 0, 0
    for shard in permutation(len(manifest.shards), "shard_order", seed, epoch):
        shards.append(int(shard))
        stop += manifest.shards[shard].rows
        if stop - start >= window_rows:
            windows.append(Window(len(windows), start, stop, tuple(shards)))
            shards, start = [], stop
    if shards:
        windows.append(Window(len(windows), start, stop, tuple(shards)))
    return windows


class WindowedRows:
    """Random access to the global order of one epoch for increasing slices; holds at most two windows."""

    def __init__(self, reader: ShardReader, window_rows: int, seed: int, epoch: int) -> None:
        self.reader, self.seed, self.epoch = reader, seed, epoch
        self.windows = plan_windows(reader.manifest, window_rows, seed, epoch)
        self.loaded: dict[int, Rows] = {}

    def take(self, positions: slice) -> Rows:
        """Rows at these positions; windows that end before them are forgotten."""
        self.loaded = {n: rows for n, rows in self.loaded.items() if self.windows[n].stop > positions.start}
        parts = []
        for window in self.windows:
            start, stop = max(positions.start, window.start), min(positions.stop, window.stop)
            if start < stop:
                parts.append(self._window(window).take(slice(start - window.start, stop - window.start)))
        return Rows.join(parts)

    def _window(self, window: Window) -> Rows:
        if window.number not in self.loaded:
            rows = self._read(window)
            order = permutation(len(rows.index), "window_order", self.seed, self.epoch, window.number)
            self.loaded[window.number] = rows.take(order)
        return self.loaded[window.number]

    def _read(self, window: Window) -> Rows:
        """Rows of a window in stored order; reading, hashing and gathering leave Python's lock to a second thread."""
        with ThreadPoolExecutor(READING_THREADS) as pool:
            rows = Rows.join(list(pool.map(lambda shard: self.reader.read(shard, self._view), window.shards)))
        return replace_unreadable(rows, self.seed, self.epoch)

    def _view(self, index: np.ndarray) -> np.ndarray:
        views = self.reader.manifest.views
        if views == 1:
            return np.zeros(len(index), dtype=np.int64)
        uniform = hash_uniform("view", self.seed, self.epoch, torch.from_numpy(index))
        return (uniform * views).long().numpy()


def replace_unreadable(rows: Rows, seed: int, epoch: int) -> Rows:
    """In place, put a readable row (codes, label, index) where an unreadable one is; they stay marked.

    Raises:
        UserError: none can be read.
    """
    lost, whole = np.flatnonzero(rows.unreadable), np.flatnonzero(~rows.unreadable)
    if not len(lost):
        return rows
    if not len(whole):
        raise UserError(f"no record of a whole shuffle window can be read (rows {rows.index.min()} and on); restore it")
    uniform = hash_uniform("replacement", seed, epoch, torch.from_numpy(rows.index[lost]))
    chosen = whole[(uniform * len(whole)).long().numpy()]
    for column in (rows.codes, rows.labels, rows.index):
        column[lost] = column[chosen]
    return rows
