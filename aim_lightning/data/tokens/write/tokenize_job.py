"""Tokenize images to shards with any number of processes; an interrupted job is continued.

The plan maps images to shards. Process r of n writes shards r, r + n, r + 2n and so on, in batches that never span two
shards. Neither n nor an interruption changes a byte. Finished shards stay. The manifest is written last, by a process
that sees all shards finished.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from aim_lightning.data.images.dataset import ImageDataset
from aim_lightning.data.tokens.format.manifest import LARGEST_CODEBOOK, Skipped, TokenManifest
from aim_lightning.data.tokens.format.record_format import write_shard
from aim_lightning.data.tokens.format.tokenize_options import TokenizeOptions
from aim_lightning.data.tokens.write.encode import Encoder, ImageBatch, ImageBatches
from aim_lightning.data.tokens.write.shard_plan import FinishedShard, PlannedShard, claim, read_finished, write_manifest
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import printable, sha256_file
from aim_lightning.utils.process import ProcessRank
from aim_lightning.utils.progress import progress

log = logging.getLogger(__name__)


class TokenizeJob:
    """The shards that one process writes to a token directory; nothing is written before `run`.

    Args:
        images: the whole set.
        tokenizer: object with `encode`, `grid`, `codebook_size`, `weights_hash`.
        out: the token directory.
        options: how images become shards.
        process: rank and number of processes; None = a single process.
        device: device of the encoder; None = CPU.
        num_workers: processes that decode images; 0 = this process.

    Raises:
        UserError: the codebook is too large, images have another size than the tokenizer's, the views do not fit, or
            `out` was started with other settings.
    """

    def __init__(
        self,
        images: ImageDataset,
        tokenizer: Any,
        out: Path,
        options: TokenizeOptions,
        process: ProcessRank | None = None,
        device: torch.device | None = None,
        num_workers: int = 0,
    ) -> None:
        self.images = images
        self.out = Path(out)
        self.options = options
        self.num_workers = num_workers
        self.device = device or torch.device("cpu")
        self.encoder = Encoder(tokenizer, self.device, options.precision, options.compile)
        _check_tokenizer(tokenizer, images.transform.image_size, self.device)
        options.views.transforms(images.transform)  # raises on a wrong crop range before anything is written
        settings = {
            "source": images.fingerprint,
            "class_names": images.class_names,
            "tokenizer_hash": tokenizer.weights_hash,
            "codebook_size": tokenizer.codebook_size,
            "grid": tuple(tokenizer.grid),
        }
        self.manifest = TokenManifest(**settings, views=options.views.count, encoding=options.encoding())
        self.all_shards = PlannedShard.plan(len(images), options.rows_per_shard)
        self.claim = partial(claim, self.out, settings | options.encoding(), self.all_shards)
        self.claim(write=False)
        process = process or ProcessRank()
        self.shards = self.all_shards[process.rank :: process.world]
        self.rows = sum(shard.rows for shard in self.shards)

    @cached_property
    def unfinished(self) -> list[PlannedShard]:
        """Return this process's shards that were unfinished or damaged at the start.

        The first access reads the finished shards to verify them.
        """
        finished = read_finished(self.out, self.shards)
        candidates = [shard for shard in self.shards if shard.name in finished]
        checked = progress(candidates, f"checking finished shards of {self.out}")
        intact = {shard.name for shard in checked if self._is_intact(finished[shard.name])}
        return [shard for shard in self.shards if shard.name not in intact]

    def _is_intact(self, shard: FinishedShard) -> bool:
        try:
            return not shard.rows or sha256_file(self.out / shard.name) == shard.sha256
        except OSError:
            return False

    def run(self, on_rows: Callable[[int], None] = lambda rows: None) -> TokenManifest | None:
        """Write the unfinished shards.

        Args:
            on_rows: called with the number of images after each encoded batch.

        Returns:
            The manifest, if this process sees all shards finished; None while other processes still write.

        Raises:
            UserError: an unreadable image, unless on_error is skip.
        """
        self.claim()
        rows = [batch for shard in self.unfinished for batch in shard.batches(self.options.batch_size)]
        loader = DataLoader(
            ImageBatches(self.images, self.options, rows),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without it the iterator advances the global generator
        )
        batches, transparent = iter(loader), 0
        for shard in self.unfinished:
            transparent += self._write(shard, batches, on_rows)
        if transparent:
            log.warning("%s: %d images have transparent pixels, composited on images.background", self.out, transparent)
        return self.complete()

    def complete(self) -> TokenManifest | None:
        """Write and return the manifest if the shards of all processes are finished; else return None."""
        return write_manifest(self.out, self.manifest, self.all_shards)

    def _write(self, shard: PlannedShard, batches: Iterator[ImageBatch], on_rows: Callable[[int], None]) -> int:
        """Write a shard and return the number of its images with transparent pixels."""
        codes, reasons, transparent = [], {}, 0
        for _ in shard.batches(self.options.batch_size):
            batch = next(batches)
            codes.append(self._encode(batch))
            reasons |= batch.skipped
            transparent += batch.transparent
            on_rows(len(batch.rows))
        rows = [row for row in range(shard.start, shard.stop) if row not in reasons]
        path, size, digest = self.out / shard.name, 0, ""
        if rows:
            slots, keys = np.array(rows) - shard.start, [self.images.key(row) for row in rows]
            codes_NVL = torch.cat(codes).cpu().numpy().astype(np.uint16)[slots]
            write_shard(path, codes_NVL, self.images.labels[rows], keys)
            size, digest = path.stat().st_size, sha256_file(path)
        skipped = [Skipped(printable(self.images.key(row)), printable(text)) for row, text in reasons.items()]
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        # The record comes after the tar: it states that the tar is complete.
        FinishedShard(shard.name, len(rows), size, digest, name, skipped).save(self.out)
        return transparent

    def _encode(self, batch: ImageBatch) -> torch.Tensor:
        """Return codes (rows, views, L) int32 on the device: a copy to the CPU here would wait for the GPU."""
        bases = [base.to(self.device, non_blocking=True) for base in batch.bases]
        views = self.options.views.cut(bases, self.images.transform.image_size)
        return torch.stack([self.encoder(view) for view in views], 1)[: len(batch.rows)]


def _check_tokenizer(tokenizer: Any, image_size: int, device: torch.device) -> None:
    if tokenizer.codebook_size > LARGEST_CODEBOOK:
        raise UserError(f"the tokenizer has {tokenizer.codebook_size} codes; shards store {LARGEST_CODEBOOK} at most")
    # A fully convolutional tokenizer accepts any size; the number of codes shows a wrong one.
    black = torch.zeros(1, 3, image_size, image_size, device=device)
    count, (rows, columns) = tokenizer.encode(black).shape[1], tokenizer.grid
    if count != rows * columns:
        fact = f"images of {image_size}x{image_size} pixels give {count} codes"
        raise UserError(f"{fact}, the tokenizer's grid is {rows}x{columns}; set images.image_size to the tokenizer's")
