"""Tokenizing: images to token shards, by any number of processes, continued where it was stopped.

The plan says which images go into which shard; process r of n makes shards r, r + n, r + 2n and so on, in batches
that never cross a shard. So neither n nor an interruption changes a byte. Finished shards stay; the manifest comes
last, from whichever process sees all shards finished.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aim_lightning.data.images.dataset import ImageDataset
from aim_lightning.data.tokens.format.manifest import LARGEST_CODEBOOK, Skipped, TokenManifest
from aim_lightning.data.tokens.format.record_format import Record, write_shard
from aim_lightning.data.tokens.format.shard_plan import PlannedShard, TokenizeOptions, check_claim, claim, plan_shards
from aim_lightning.data.tokens.write.image_loader import LoadedBatch, load
from aim_lightning.data.tokens.write.shard_progress import (
    FinishedShard,
    is_intact,
    read_finished,
    record_finished,
    write_manifest,
)
from aim_lightning.data.tokens.write.tokenizer_encoder import Encoder
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable, sha256_file
from aim_lightning.utils.process import ProcessRank
from aim_lightning.utils.progress import progress


class TokenizeJob:
    """One process's part of a token directory; nothing is written before `run`.

    Args:
        images: the whole set.
        tokenizer: anything with `encode`, `grid`, `codebook_size`, `weights_hash`.
        out: the directory.
        options: how images become shards.
        place: which process this is; by default the only one.
        device: where to encode.
        num_workers: processes that decode images; 0 = this one.

    Raises:
        UserError: codebook too large, images of another size, views that they cannot have, or `out` begun from
            something else.
    """

    def __init__(
        self,
        images: ImageDataset,
        tokenizer: Any,
        out: Path,
        options: TokenizeOptions,
        place: ProcessRank | None = None,
        device: torch.device | None = None,
        num_workers: int = 0,
    ) -> None:
        self.images, self.out, self.options, self.num_workers = images, Path(out), options, num_workers
        self.device = device or torch.device("cpu")
        self.encoder = Encoder(tokenizer, self.device, options.precision, options.compile)
        self.manifest = _empty_manifest(images, tokenizer, options)
        _check_size(images.transform.image_size, tokenizer, self.device)
        options.views.transforms(images.transform)  # a range that does not fit is told before anything is written
        self.shards = plan_shards(len(images), options.rows_per_shard)
        facts = {"source": self.manifest.source, "class_names": self.manifest.class_names}
        facts |= {name: getattr(self.manifest, name) for name in ("tokenizer_hash", "codebook_size", "grid")}
        self.facts = {**facts, **options.facts()}
        check_claim(self.out, self.facts, self.shards)
        place = place or ProcessRank()
        self.own = self.shards[place.rank :: place.world]

    @property
    def rows(self) -> int:
        """Images in this process's shards."""
        return sum(shard.rows for shard in self.own)

    @cached_property
    def todo(self) -> list[PlannedShard]:
        """This process's shards that were unfinished or damaged at the start; the finished ones are read to see it."""
        finished = read_finished(self.out, self.own)
        there = [shard for shard in self.own if shard.name in finished]
        seen = progress(there, f"checking finished shards of {self.out}")
        whole = {shard.name for shard in seen if is_intact(self.out, finished[shard.name])}
        return [shard for shard in self.own if shard.name not in whole]

    def run(self, on_rows: Callable[[int], None] = lambda rows: None) -> TokenManifest | None:
        """Make the unfinished shards; `on_rows` hears of every encoded batch.

        Returns:
            The manifest, written now, if this process sees all shards finished; None if others still work.

        Raises:
            UserError: an unreadable image, unless they are to be skipped.
        """
        claim(self.out, self.facts, self.shards)
        batches = [rows for shard in self.todo for rows in shard.batches(self.options.batch_size)]
        loaded = load(self.images, self.options, batches, self.num_workers, self.device)
        for shard in self.todo:
            self._make(shard, loaded, on_rows)
        return self.complete()

    def complete(self) -> TokenManifest | None:
        """The manifest, written now, if all shards of all processes are finished; else None."""
        return write_manifest(self.out, self.manifest, self.shards)

    def _make(self, shard: PlannedShard, loaded: Iterator[LoadedBatch], on_rows: Callable[[int], None]) -> None:
        codes, reasons = [], {}
        for _ in shard.batches(self.options.batch_size):
            batch = next(loaded)
            codes.append(self._encode(batch))
            reasons |= batch.skipped
            on_rows(len(batch.rows))
        kept = [row for row in range(shard.start, shard.stop) if row not in reasons]
        slots = np.array(kept, dtype=np.int64) - shard.start
        keys = [self.images.key(row) for row in kept]
        record = Record(torch.cat(codes).cpu().numpy().astype(np.uint16)[slots], self.images.labels[kept], keys)
        skipped = [Skipped(printable(self.images.key(row)), printable(why)) for row, why in reasons.items()]
        self._finish(shard, record, skipped)

    def _encode(self, batch: LoadedBatch) -> torch.Tensor:
        """(rows, views, L) int32, left on the device so that the next batch need not wait for this one."""
        bases = [base.to(self.device, non_blocking=True) for base in batch.bases]
        views = self.options.views.cut(bases, self.images.transform.image_size)
        return torch.stack([self.encoder(view) for view in views], 1)[: len(batch.rows)]

    def _finish(self, shard: PlannedShard, record: Record, skipped: list[Skipped]) -> None:
        path, size, digest = self.out / shard.name, 0, ""
        if record.keys:
            write_shard(path, record)
            size, digest = path.stat().st_size, sha256_file(path)
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        record_finished(self.out, FinishedShard(shard.name, len(record.keys), size, digest, name, skipped))


def _check_size(image_size: int, tokenizer: Any, device: torch.device) -> None:
    """A fully convolutional tokenizer takes any image: the number of codes tells whether it is the right size."""
    black = torch.zeros(1, 3, image_size, image_size, device=device)
    count, (rows, columns) = tokenizer.encode(black).shape[1], tokenizer.grid
    if count != rows * columns:
        raise UserError(
            f"images of {image_size}x{image_size} pixels give {count} codes, the tokenizer's grid is "
            f"{rows}x{columns}; set images.image_size to the tokenizer's"
        )


def _empty_manifest(images: ImageDataset, tokenizer: Any, options: TokenizeOptions) -> TokenManifest:
    if tokenizer.codebook_size > LARGEST_CODEBOOK:
        raise UserError(
            f"the tokenizer has {tokenizer.codebook_size} codes; shards store 16 bits, {LARGEST_CODEBOOK} at most"
        )
    return TokenManifest(
        grid=tuple(tokenizer.grid),
        codebook_size=tokenizer.codebook_size,
        class_names=images.class_names,
        views=options.views.count,
        tokenizer_hash=tokenizer.weights_hash,
        source=images.fingerprint,
        encoding=options.facts(),
    )
