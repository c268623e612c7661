"""The global order of token rows: shards shuffled, then rows shuffled within windows of several shards.

A window bounds memory and reading: a row's place depends on (seed, epoch) and the manifest alone, and any position
can be reached by reading its window only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from aim_lightning.data.tokens.manifest import TokenManifest
from aim_lightning.data.tokens.records import read_records
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.random import hash_uniform, permutation


@dataclass(frozen=True)
class Window:
    """Positions [start, stop) of the global order, filled from these shards (indices into the manifest)."""

    number: int
    start: int
    stop: int
    shards: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """codes (n, tokens) uint16, labels (n,) int64, index (n,) int64: the dataset row of each."""

    codes: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def take(self, selection) -> "Rows":
        return Rows(self.codes[selection], self.labels[selection], self.index[selection])

    @staticmethod
    def join(parts: list["Rows"]) -> "Rows":
        columns = ([getattr(part, name) for part in parts] for name in ("codes", "labels", "index"))
        return parts[0] if len(parts) == 1 else Rows(*(np.concatenate(column) for column in columns))


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


class ShardReader:
    """Reads whole shards as rows with one view each.

    Args:
        manifest: of the folder.
        url: shard name to something webdataset opens (a path, http:, pipe:).
    """

    def __init__(self, manifest: TokenManifest, url: Callable[[str], str]) -> None:
        self.manifest, self.url = manifest, url
        self.first_rows = np.cumsum([0, *(shard.rows for shard in manifest.shards)])

    def read(self, shard: int, choose_view: Callable[[np.ndarray], np.ndarray]) -> Rows:
        """All rows of a shard in stored order; `choose_view` maps dataset rows to views.

        Raises:
            UserError: damaged shard, or another number of rows than the manifest says.
        """
        expected = self.manifest.shards[shard]
        parts, first = [], int(self.first_rows[shard])
        for codes, labels in read_records(self.url(expected.name), self.manifest):
            index = np.arange(first, first + len(labels))
            parts.append(Rows(codes[np.arange(len(labels)), choose_view(index)], labels, index))
            first += len(labels)
        found = first - int(self.first_rows[shard])
        if found != expected.rows:
            raise UserError(
                f"{self.url(expected.name)} holds {found} rows, its manifest says {expected.rows}: "
                "the shard is truncated or not the one that was written"
            )
        return Rows.join(parts)


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
            rows = Rows.join([self.reader.read(shard, self._view) for shard in window.shards])
            order = permutation(len(rows.index), "window_order", self.seed, self.epoch, window.number)
            self.loaded[window.number] = rows.take(order)
        return self.loaded[window.number]

    def _view(self, index: np.ndarray) -> np.ndarray:
        views = self.reader.manifest.views
        if views == 1:
            return np.zeros(len(index), dtype=np.int64)
        uniform = hash_uniform("view", self.seed, self.epoch, torch.from_numpy(index))
        return (uniform * views).long().numpy()
