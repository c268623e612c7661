"""Packed records of token shards: written deterministically, read through webdataset, checked on the way in."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset as wds

from aim_lightning.data.tar import open_tar
from aim_lightning.data.tokens.manifest import TokenManifest
from aim_lightning.utils.errors import UserError

ROWS_PER_RECORD = 1000


@dataclass
class Record:
    """codes (n, views, tokens) uint16, labels (n,) int64; keys: names of the source pictures."""

    codes: np.ndarray
    labels: np.ndarray
    keys: list[str]


def write_shard(path: Path, record: Record) -> None:
    """Write a shard's rows as records of about a thousand; the same rows give the same bytes."""
    with open_tar(path) as tar:
        for start in range(0, len(record.labels), ROWS_PER_RECORD):
            part = slice(start, start + ROWS_PER_RECORD)
            tar.write(
                {
                    "__key__": f"{path.name.strip('.').split('.')[0]}-{start // ROWS_PER_RECORD:04d}",
                    "codes.npy": _npy(record.codes[part].astype("<u2")),
                    "labels.npy": _npy(record.labels[part].astype("<i8")),
                    "keys.json": json.dumps(record.keys[part], ensure_ascii=False).encode(),
                }
            )


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_records(url: str, manifest: TokenManifest) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """codes (n, views, tokens) and labels (n,) of each record of one shard, in order.

    Raises:
        UserError: the shard is missing, truncated or foreign, or a record does not fit the manifest.
    """
    pipeline = wds.DataPipeline(wds.SimpleShardList([url]), wds.tarfile_to_samples())
    try:
        for sample in pipeline:
            where = f"{url}, record {sample['__key__']}"
            codes, labels = (_load(sample, name, where) for name in ("codes.npy", "labels.npy"))
            _check(codes, labels, manifest, where)
            yield codes, labels
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{url} cannot be read ({error}); restore it or tokenize the pictures again") from error


def _load(sample: dict, name: str, where: str) -> np.ndarray:
    if name not in sample:
        raise UserError(f"{where} has no {name}: this is no token shard of ours")
    try:
        return np.load(io.BytesIO(sample[name]), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{where}: {name} is damaged ({error}); restore the shard or tokenize again") from error


def _check(codes: np.ndarray, labels: np.ndarray, manifest: TokenManifest, where: str) -> None:
    expected = (len(labels), manifest.views, manifest.num_tokens)
    if codes.dtype != np.uint16 or codes.shape != expected:
        raise UserError(f"{where}: codes are {codes.dtype} {codes.shape}, expected uint16 {expected}")
    if len(codes) and codes.max() >= manifest.codebook_size:
        raise UserError(f"{where}: code {codes.max()} is out of range, the codebook has {manifest.codebook_size}")
    classes = len(manifest.class_names)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        worst = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(f"{where}: label {worst} is out of range, the manifest names {classes} classes")
