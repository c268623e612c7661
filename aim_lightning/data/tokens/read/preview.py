"""Decode random rows of a token directory to images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.read.reader import Rows, ShardReader
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.pixels import to_uint8
from aim_lightning.utils.random import hash_int64, permutation

BATCH = 16  # images decoded together


def preview(directory: Path, tokenizer: Any, num: int, seed: int, device: torch.device) -> tuple[Tensor, list[str]]:
    """Decode random rows, each in a random view.

    Args:
        directory: token directory.
        tokenizer: object with `decode` and `weights_hash`.
        num: number of rows; none is used twice.
        seed: seed of rows and views.
        device: device of the tokenizer.

    Returns:
        Images, uint8 (n, 3, H, W), and one caption per image: its class, with the view number if several are stored.

    Raises:
        UserError: another tokenizer wrote the codes, or a shard is damaged.
    """
    manifest = TokenManifest.load(directory)
    if tokenizer.weights_hash != manifest.tokenizer_hash:
        raise UserError(f"{directory} was written by another tokenizer (weights hash differs); set --tokenizer to it")
    # Sorted: each shard is read once, and the images appear in the order of the set.
    chosen = np.sort(permutation(manifest.rows, "preview", seed)[:num])

    def views(index: np.ndarray) -> np.ndarray:
        return (hash_int64("preview_view", seed, torch.from_numpy(index)) % manifest.views).numpy()

    reader, parts = ShardReader(manifest, lambda name: str(directory / name)), []
    for shard in np.unique(np.searchsorted(manifest.first_rows, chosen, side="right") - 1):
        rows = reader.read(int(shard), views)
        parts.append(rows.take(np.isin(rows.index, chosen)))
    rows = Rows.join(parts)
    batches = torch.from_numpy(rows.codes.astype(np.int64)).split(BATCH)
    images = torch.cat([to_uint8(tokenizer.decode(codes.to(device))).cpu() for codes in batches])
    names = [manifest.class_names[label] for label in rows.labels]
    if manifest.views > 1:
        names = [f"{view}: {name}" for view, name in zip(views(rows.index), names, strict=True)]
    return images, names
