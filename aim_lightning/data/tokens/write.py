"""Tokenizing: pictures to token shards, continued where it was stopped.

The plan (which rows in which shard) follows from the number of pictures alone; finished shards appear by rename and
stay; the manifest comes last.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aim_lightning.data.images.pictures import PictureSet
from aim_lightning.data.tokens.manifest import LARGEST_CODEBOOK, TokenManifest, TokenShard
from aim_lightning.data.tokens.records import Record, write_shard
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, sha256_file, write_json
from aim_lightning.utils.pixels import to_unit_range

VIEWS = {"center": 1, "center_flip": 2}


@dataclass(frozen=True)
class TokenizeOptions:
    """How pictures become shards.

    Args:
        views: ``center``, or ``center_flip`` for the picture and its mirror image.
        rows_per_shard: pictures a shard.
        batch_size: pictures encoded at once; fixed, since results may depend on it in the last digit.
    """

    views: str = "center"
    rows_per_shard: int = 10000
    batch_size: int = 64


def write_token_shards(
    pictures: PictureSet,
    tokenizer,
    out: Path,
    options: TokenizeOptions,
    on_rows: Callable[[int], None],
    device: torch.device | None = None,
) -> TokenManifest:
    """Encode a whole set into `out`; `on_rows` hears of every finished batch (and of shards found finished).

    Raises:
        UserError: codebook too large, pictures of another size, or `out` begun from something else.
    """
    manifest = _empty_manifest(pictures, tokenizer, options)
    _check_size(pictures, tokenizer, device)
    _claim(out, manifest, options)
    shards = []
    for number, start in enumerate(range(0, len(pictures), options.rows_per_shard)):
        path = out / f"tokens-{number:06d}.tar"
        rows = range(start, min(start + options.rows_per_shard, len(pictures)))
        if path.exists():
            on_rows(len(rows))
        else:
            write_shard(path, _encode(pictures, rows, tokenizer, options, on_rows, device))
        shards.append(TokenShard(path.name, len(rows), sha256_file(path)))
    manifest = TokenManifest(**{**_fields(manifest), "shards": shards})
    manifest.save(out)
    return manifest


def _check_size(pictures: PictureSet, tokenizer, device: torch.device | None) -> None:
    """A fully convolutional tokenizer takes any picture: the number of codes tells whether it is the right size."""
    images, _ = pictures.batch(range(1))
    count, (rows, columns) = tokenizer.encode(to_unit_range(images.to(device))).shape[1], tokenizer.grid
    if count != rows * columns:
        raise UserError(
            f"pictures of {images.shape[-2]}x{images.shape[-1]} pixels give {count} codes, the tokenizer's grid is "
            f"{rows}x{columns}; set pictures.image_size to the tokenizer's"
        )


def _fields(manifest: TokenManifest) -> dict:
    return {name: getattr(manifest, name) for name in TokenManifest.__dataclass_fields__}


def _empty_manifest(pictures: PictureSet, tokenizer, options: TokenizeOptions) -> TokenManifest:
    if tokenizer.codebook_size > LARGEST_CODEBOOK:
        raise UserError(
            f"the tokenizer has {tokenizer.codebook_size} codes; shards store 16 bits, {LARGEST_CODEBOOK} at most"
        )
    if options.views not in VIEWS:
        raise UserError(f"views is {options.views!r}; use one of {', '.join(VIEWS)}")
    return TokenManifest(
        grid=tokenizer.grid,
        codebook_size=tokenizer.codebook_size,
        class_names=pictures.class_names,
        views=VIEWS[options.views],
        tokenizer_hash=tokenizer.weights_hash,
        source=pictures.fingerprint,
    )


def _claim(out: Path, manifest: TokenManifest, options: TokenizeOptions) -> None:
    """Write down what this folder is being made from, or check that it is the same as last time."""
    plan = {"options": asdict(options), **{k: v for k, v in asdict(manifest).items() if k != "shards"}}
    plan["grid"] = list(plan["grid"])
    path = out / "plan.json"
    if path.exists():
        before = read_json(path, "tokenizing plan")
        different = sorted(k for k in plan if before.get(k) != plan[k])
        if different:
            raise UserError(
                f"{out} was begun with another {', '.join(different)}; delete that folder or set data.out to a new one"
            )
    elif any(out.glob("*.tar")):
        raise UserError(f"{out} holds tar files that tokenize did not write; set data.out to a new folder")
    else:
        write_json(path, plan)


def _encode(pictures, rows, tokenizer, options, on_rows, device) -> Record:
    codes, labels, keys = [], [], []
    for start in range(rows.start, rows.stop, options.batch_size):
        part = range(start, min(start + options.batch_size, rows.stop))
        images, part_labels = pictures.batch(part)
        codes.append(_encode_views(images.to(device), tokenizer, options.views))
        labels.append(part_labels.numpy())
        keys += [pictures.key(row) for row in part]
        on_rows(len(part))
    return Record(np.concatenate(codes), np.concatenate(labels), keys)


def _encode_views(images_BCHW: Tensor, tokenizer, views: str) -> np.ndarray:
    """uint8 pictures to codes (B, views, L) uint16."""
    x = to_unit_range(images_BCHW)
    versions = [x] if views == "center" else [x, x.flip(-1)]
    return torch.stack([tokenizer.encode(v) for v in versions], 1).cpu().numpy().astype(np.uint16)
