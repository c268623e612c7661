"""The DataModule of pre-tokenized images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from aim_lightning.data.images.base import sha256_json
from aim_lightning.data.stream import BatchPlan
from aim_lightning.data.stream_datamodule import StreamDataModule
from aim_lightning.data.stream_loader import Batch, MicroBatches
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.format.shard_url import Location
from aim_lightning.data.tokens.read.fetch import Fetcher
from aim_lightning.data.tokens.read.reader import Rows, ShardReader
from aim_lightning.data.tokens.read.windows import WindowedRows
from aim_lightning.utils.errors import UserError


def to_batch(rows: Rows, epoch: int) -> Batch:
    """codes (B, L), labels (B,), index (B,), epoch (), replaced (): int64 tensors.

    replaced: how many rows of the batch stand in for unreadable ones.
    """
    return {
        "codes": torch.from_numpy(rows.codes.astype(np.int64)),
        "labels": torch.from_numpy(rows.labels.astype(np.int64)),
        "index": torch.from_numpy(rows.index.astype(np.int64)),
        "epoch": torch.tensor(epoch),
        "replaced": torch.tensor(int(rows.unreadable.sum())),
    }


class TokenMicroBatches(MicroBatches):
    """The training stream of one rank: views chosen by (seed, epoch, row), rows in windowed order."""

    def __init__(self, reader: ShardReader, window_rows: int, plan: BatchPlan, rank: int, seed: int) -> None:
        super().__init__(reader.manifest.rows, plan, rank, seed)
        self.reader, self.window_rows = reader, window_rows

    def read(self, positions: Iterator[slice]) -> Iterator[Batch]:
        rows = WindowedRows(self.reader, self.window_rows, self.seed, self.epoch)
        for piece in positions:
            yield to_batch(rows.take(piece), self.epoch)


class TokenRows(IterableDataset):
    """A rank's share of a set in stored order, first view, every row once over all ranks."""

    def __init__(self, reader: ShardReader, batch_size: int, rank: int, world_size: int) -> None:
        self.reader, self.batch_size, self.rank, self.world_size = reader, batch_size, rank, world_size

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
        global_batch_size: images an optimizer step, over all devices.
        max_device_batch_size: most images a device takes at once; more accumulate. null = no limit.
        val_batch_size: images a device and validation step.
        num_workers: loader processes a device. Every one reads the whole stream, and 0 or 1 is fast enough.
        window_rows: rows shuffled together, a bound on memory: 2 windows of (2 * tokens + 17) bytes a row, and 2
            shards while they are read.
        seed: fixes order, views and label dropout.
        on_corrupt: ``stop`` at a corrupt training record and name it, or ``skip`` it: another row of the window takes
            the place of each of its rows. Validation always stops.
        skip_limit: rows an epoch that others may stand in for, before training stops.
        cache_dir: shards from URLs are kept in this directory; null = read again every epoch.
        retries: further attempts to read a file, after 1, 2, 4 … times retry_pause.
        retry_pause: seconds.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        path: str,
        global_batch_size: int = 256,
        max_device_batch_size: int | None = None,
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
        for name, value in (("skip_limit", skip_limit), ("retries", retries), ("retry_pause", retry_pause)):
            if value < 0:
                raise UserError(f"data.{name} is {value}; it cannot be negative")
        self.path, self.val_batch_size, self.window_rows = str(path), val_batch_size, window_rows
        self.on_corrupt, self.skip_limit = on_corrupt, skip_limit
        self.fetcher = Fetcher(retries, retry_pause, Path(cache_dir) if cache_dir else None)
        self.readers: dict[str, ShardReader] = {}

    def setup(self, stage: str) -> None:
        """Read both manifests.

        Raises:
            UserError: a directory is not finished, or train and val come from different tokenizers.
        """
        for split in ("train", "val"):
            skip = split == "train" and self.on_corrupt == "skip"
            self.readers[split] = ShardReader(self._load(split), ShardUrl(self.path, split), self.fetcher, skip)
        train, val = self.manifest, self.readers["val"].manifest
        if (train.tokenizer_hash, train.class_names) != (val.tokenizer_hash, val.class_names):
            raise UserError(f"{self.path}: train and val were made with different tokenizers or classes")

    def _load(self, split: str) -> TokenManifest:
        location = Location(self.path)
        if not location.is_remote:
            return TokenManifest.load(Path(self.path) / split)
        url = location.url(split, "manifest.json")
        return TokenManifest.parse(self.fetcher.fetch(url).data.decode("utf-8", "replace"), url)

    @property
    def manifest(self) -> TokenManifest:
        """Of the training shards."""
        return self.readers["train"].manifest

    @property
    def train_rows(self) -> int:
        return self.manifest.rows

    @property
    def fingerprint(self) -> str:
        """Of the shards' names, rows and hashes, in order."""
        return sha256_json([shard.name, shard.rows, shard.sha256] for shard in self.manifest.shards)

    @property
    def class_names(self) -> list[str]:
        return self.manifest.class_names

    def micro_batches(self, plan: BatchPlan, rank: int) -> MicroBatches:
        return TokenMicroBatches(self.readers["train"], self.window_rows, plan, rank, self.seed)

    def val_dataloader(self) -> DataLoader:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        rows = TokenRows(self.readers["val"], self.val_batch_size, rank, world)
        # The loader would otherwise draw from the global generator: a validation more changed training's dropout.
        return DataLoader(rows, batch_size=None, generator=torch.Generator())


class ShardUrl:
    """Shard name to path or URL (a class, so that loader workers can be started by spawn)."""

    def __init__(self, path: str, split: str) -> None:
        self.location, self.split = Location(path), split

    def __call__(self, name: str) -> str:
        return self.location.url(self.split, name)
