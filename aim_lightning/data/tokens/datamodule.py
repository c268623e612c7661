"""The DataModule of pre-tokenized images."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from aim_lightning.data.images.base import sha256_json
from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.stream_datamodule import Batch, BatchLoader, MicroBatches, StreamDataModule
from aim_lightning.data.tokens.format.manifest import MANIFEST, TokenManifest, file_url, is_remote
from aim_lightning.data.tokens.read.fetch import Fetcher
from aim_lightning.data.tokens.read.reader import Rows, ShardReader, WindowedRows
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import reading
from aim_lightning.utils.ranges import check_arguments


def to_batch(rows: Rows, epoch: int) -> Batch:
    """Convert rows to int64 tensors: codes (B, L), labels and index (B,), epoch and replaced ().

    Args:
        rows: B rows.
        epoch: epoch of the global order. `replaced` counts the rows that replace unreadable ones.
    """
    return {
        "codes": torch.from_numpy(rows.codes.astype(np.int64)),
        "labels": torch.from_numpy(rows.labels.astype(np.int64)),
        "index": torch.from_numpy(rows.index.astype(np.int64)),
        "epoch": torch.tensor(epoch),
        "replaced": torch.tensor(int(rows.unreadable.sum())),
    }


class TokenMicroBatches(MicroBatches):
    """Training stream of one rank: rows in windowed order, views chosen by (seed, epoch, row)."""

    def __init__(self, reader: ShardReader, window_rows: int, plan: BatchPlan, rank: int, seed: int) -> None:
        super().__init__(reader.manifest.rows, plan, rank, seed)
        self.reader = reader
        self.window_rows = window_rows

    def read(self, positions: Iterator[slice]) -> Iterator[Batch]:
        """Yield one micro-batch per slice of the global order."""
        rows = WindowedRows(self.reader, self.window_rows, self.seed, self.epoch)
        for part in positions:
            yield to_batch(rows.take(part), self.epoch)


class TokenRows(IterableDataset):
    """Batches of a rank's share of a set in stored order, first view; each row occurs once over all ranks."""

    def __init__(self, reader: ShardReader, batch_size: int, rank: int, world_size: int) -> None:
        self.reader = reader
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        # At least 1: Lightning refuses a rank without batches, which an iterator may be.
        return max(1, sum(-(-rows // self.batch_size) for rows in self._rows_per_shard()))

    def _rows_per_shard(self) -> Iterator[int]:
        for shard, first in zip(self.reader.manifest.shards, map(int, self.reader.manifest.first_rows), strict=False):
            yield len(range(first + (self.rank - first) % self.world_size, first + shard.rows, self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        for shard in range(len(self.reader.manifest.shards)):
            rows = self.reader.read(shard, lambda index: np.zeros(len(index), dtype=np.int64))
            rows = rows.take(rows.index % self.world_size == self.rank)
            for start in range(0, len(rows.index), self.batch_size):
                yield to_batch(rows.take(slice(start, start + self.batch_size)), epoch=0)


class TokenDataModule(StreamDataModule):
    """Streams token shards from a directory or a URL.

    Args:
        path: directory with `train/` and `val/`, each with a manifest.json, as `tokenize` writes it; or a URL that
            webdataset opens: `http://HOST/DIRECTORY`, `pipe:COMMAND {}` ({} = the file, such as train/manifest.json).
        global_batch_size: images per optimizer step, over all devices.
        max_device_batch_size: largest micro-batch per device; larger batches are accumulated. null = no limit;
            ``auto`` = estimated from the memory of the GPU, at most 256; a run keeps its micro-batch when it continues.
        val_batch_size: images per device and validation step.
        num_workers: loader processes per device. Each one reads the whole stream; 0 or 1 is fast enough.
        window_rows: rows shuffled together. This bounds memory: 2 windows of (2 * tokens + 17) bytes per row, and 2
            shards while they are read.
        seed: seed of order, views and label dropout.
        on_corrupt: ``stop`` raises an error that names a corrupt training record. ``skip`` replaces each of its rows
            by another row of the window. Validation always stops.
        skip_limit: largest number of replaced rows per epoch; training stops above it.
        cache_dir: directory that keeps shards from URLs; null = fetch them again every epoch.
        retries: further attempts to read a file, after 1, 2, 4 … times retry_pause.
        retry_pause: seconds.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        path: str,
        global_batch_size: int = 256,
        max_device_batch_size: int | Literal["auto"] | None = None,
        val_batch_size: int = 256,
        num_workers: int = 0,
        window_rows: int = 65536,
        seed: int = 0,
        on_corrupt: Literal["stop", "skip"] = "stop",
        skip_limit: int = 1000,
        cache_dir: str | None = None,
        retries: int = 5,
        retry_pause: float = 1.0,
    ) -> None:
        super().__init__(global_batch_size, max_device_batch_size, num_workers, seed)
        limits = {"skip_limit": skip_limit, "retries": retries, "retry_pause": retry_pause}
        check_arguments("data.", TokenDataModule.__init__, limits)
        self.path = str(path)
        self.val_batch_size = val_batch_size
        self.window_rows = window_rows
        self.on_corrupt = on_corrupt
        self.skip_limit = skip_limit
        self.fetcher = Fetcher(retries, retry_pause, Path(cache_dir) if cache_dir else None)
        self.readers: dict[str, ShardReader] = {}

    def setup(self, stage: str) -> None:
        """Read both manifests.

        Args:
            stage: ignored; Lightning passes it.

        Raises:
            UserError: a directory is unfinished, or train and val come from different tokenizers.
        """
        for split in ("train", "val"):
            skip = split == "train" and self.on_corrupt == "skip"
            url = file_url(self.path, split, MANIFEST)
            with reading():
                if is_remote(self.path):
                    manifest = TokenManifest.parse(self.fetcher.fetch(url).data.decode("utf-8", "replace"), url)
                else:
                    manifest = TokenManifest.load(Path(self.path) / split)
            self.readers[split] = ShardReader(manifest, partial(file_url, self.path, split), self.fetcher, skip)
        train, val = self.manifest, self.readers["val"].manifest
        if (train.tokenizer_hash, train.class_names) != (val.tokenizer_hash, val.class_names):
            raise UserError(f"{self.path}: train and val were made with different tokenizers or classes")

    @property
    def manifest(self) -> TokenManifest:
        """Return the manifest of the training shards."""
        return self.readers["train"].manifest

    @property
    def train_rows(self) -> int:
        """Return the number of training images."""
        return self.manifest.rows

    @property
    def fingerprint(self) -> str:
        """Return the sha256 over names, rows and hashes of the training shards, in order."""
        return sha256_json([shard.name, shard.rows, shard.sha256] for shard in self.manifest.shards)

    @property
    def class_names(self) -> list[str]:
        """Return class names by label."""
        return self.manifest.class_names

    def micro_batches(self, plan: BatchPlan, rank: int) -> MicroBatches:
        """Return the training stream of one rank."""
        return TokenMicroBatches(self.readers["train"], self.window_rows, plan, rank, self.seed)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of this rank's validation rows."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        rows = TokenRows(self.readers["val"], self.val_batch_size, rank, world)
        return BatchLoader(rows, num_workers=0)
