"""Reading a token shard for its faults: everything that is wrong, not just the first."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aim_lightning.data.tar import members
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.format.record_format import record_digest

MEMBERS = ("codes.npy", "keys.json", "labels.npy")


@dataclass(frozen=True)
class Fault:
    """Something wrong: in which file, in which record of it (empty: in the file as a whole), and what."""

    shard: str
    record: str
    text: str

    def __str__(self) -> str:
        return f"{self.shard}, record {self.record}: {self.text}" if self.record else f"{self.shard}: {self.text}"


@dataclass
class ShardContent:
    """What could be read of a shard: rows, labels (n,), the keys of each record by its name, and what is wrong."""

    rows: int = 0
    labels: list[np.ndarray] = field(default_factory=list)
    keys: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def inspect_shard(path: Path, manifest: TokenManifest) -> ShardContent:
    """Read every record of a shard, and go on after a damaged one."""
    content, foreign, last = ShardContent(), [], ""
    try:
        for last, record in _records(path):
            if all(name in record for name in MEMBERS):
                _inspect_record(record, manifest, content, path.name, last)
            else:
                foreign.append(last)
    except (tarfile.TarError, OSError, EOFError) as error:
        after = f" after record {last}" if last else ""
        content.faults.append(Fault(path.name, "", f"truncated or damaged{after} ({error})"))
    if foreign:
        text = f"lacks {', '.join(MEMBERS)}: no record of ours ({len(foreign)} such records)"
        content.faults.append(Fault(path.name, foreign[0], text))
    return content


def _records(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by extension) of each record that is whole."""
    key, record = "", {}
    with path.open("rb") as file:
        for tar, member in members(file):
            stem, _, extension = member.name.partition(".")
            if key and stem != key:
                yield key, record
                record = {}
            key = stem
            content = tar.extractfile(member) if member.isreg() else None
            record[extension] = content.read() if content else b""
    if key:
        yield key, record


def _inspect_record(
    record: dict[str, bytes], manifest: TokenManifest, content: ShardContent, shard: str, key: str
) -> None:
    """Add a record's rows, labels, keys and faults."""
    if "sha256" in record and record["sha256"].decode("ascii", "replace") != record_digest(record):
        content.faults.append(Fault(shard, key, "its checksum differs: bytes were changed after it was written"))
    try:
        codes, labels = (np.load(io.BytesIO(record[name]), allow_pickle=False) for name in ("codes.npy", "labels.npy"))
        keys = [str(name) for name in json.loads(record["keys.json"])]
        faults = list(_faults_of(codes, labels, keys, manifest))
    except Exception as error:  # NumPy's reader raises almost anything for damaged headers
        content.faults.append(Fault(shard, key, f"cannot be decoded ({error})"))
        return
    content.faults += [Fault(shard, key, text) for text in faults]
    content.rows += len(labels)
    content.labels.append(labels)
    content.keys.setdefault(key, []).extend(keys)


def _faults_of(codes: np.ndarray, labels: np.ndarray, keys: list[str], manifest: TokenManifest) -> Iterator[str]:
    classes, expected = len(manifest.class_names), (len(labels), manifest.views, manifest.num_tokens)
    if len(keys) != len(labels):
        yield f"{len(keys)} keys for {len(labels)} labels"
    if codes.dtype != np.uint16 or codes.shape != expected:
        yield f"codes are {codes.dtype} {codes.shape}, expected uint16 {expected} (rows, views, codes an image)"
    elif len(wrong := np.argwhere(codes >= manifest.codebook_size)):
        row, view, position = wrong[0]
        code, more = codes[row, view, position], f"({len(wrong)} such codes)"
        yield f"row {row}, view {view}: code {code} is out of range, the codebook has {manifest.codebook_size} {more}"
    if labels.dtype != np.int64 or labels.ndim != 1:
        yield f"labels are {labels.dtype} {labels.shape}, expected int64 (rows,)"
    elif len(wrong := np.flatnonzero((labels < 0) | (labels >= classes))):
        label, more = labels[wrong[0]], f"({len(wrong)} such labels)"
        yield f"row {wrong[0]}: label {label} is out of range, the manifest names {classes} classes {more}"
