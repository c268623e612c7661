"""Whole shards as rows with one view each, wherever they are stored."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np

from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.format.record_format import stored_records
from aim_lightning.data.tokens.read.fetch import Fetcher
from aim_lightning.utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """codes (n, tokens) uint16, labels (n,) int64, index (n,) int64: the dataset row of each.

    unreadable (n,) bool: rows of corrupt records, which another row stands in for before anyone sees them.
    """

    codes: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    unreadable: np.ndarray

    def take(self, selection) -> "Rows":
        return Rows(*(getattr(self, f.name)[selection] for f in fields(self)))

    @staticmethod
    def join(parts: list["Rows"]) -> "Rows":
        columns = ([getattr(part, f.name) for part in parts] for f in fields(Rows))
        return parts[0] if len(parts) == 1 else Rows(*(np.concatenate(column) for column in columns))


@dataclass
class ShardReader:
    """Reads shards of one directory.

    Args:
        manifest: of the directory.
        url: shard name to something webdataset opens (a path, http:, pipe:).
        fetcher: how files are read.
        skip_corrupt: mark the rows of corrupt records as unreadable instead of stopping.
    """

    manifest: TokenManifest
    url: Callable[[str], str]
    fetcher: Fetcher = field(default_factory=Fetcher)
    skip_corrupt: bool = False
    _told: set[str] = field(default_factory=set)

    def read(self, shard: int, choose_view: Callable[[np.ndarray], np.ndarray]) -> Rows:
        """All rows of a shard in stored order; `choose_view` maps dataset rows to views.

        Raises:
            UserError: the shard cannot be read, or a record is corrupt (unless those are skipped).
        """
        expected, first = self.manifest.shards[shard], int(self.manifest.first_rows[shard])
        rows = _blank(first, expected.rows, self.manifest.num_tokens)
        url = self.url(expected.name)
        fetched = self.fetcher.fetch(url, expected.sha256)
        for record in stored_records(fetched.data, expected.rows, self.manifest, url, fetched.intact):
            place = slice(record.start, record.start + record.rows)
            if record.fault:
                self._skip(record.fault)
                rows.unreadable[place] = True
            else:
                views = choose_view(rows.index[place])
                rows.codes[place] = record.codes[np.arange(record.rows), views]
                rows.labels[place] = record.labels
        return rows

    def _skip(self, fault: str) -> None:
        if not self.skip_corrupt:
            raise UserError(f"{fault}, or go on without it by data.on_corrupt skip")
        if fault not in self._told:
            self._told.add(fault)
            log.warning("skipped a corrupt record: %s", fault)


def _blank(first: int, rows: int, tokens: int) -> Rows:
    index = np.arange(first, first + rows)
    codes, labels = np.zeros((rows, tokens), np.uint16), np.zeros(rows, np.int64)
    return Rows(codes, labels, index, np.zeros(rows, bool))
