"""Packed records of token shards: written deterministically, checked on the way in."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset as wds

from aim_lightning.data.tar import members, open_tar
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.utils.errors import UserError

ROWS_PER_RECORD = 1000


@dataclass
class Record:
    """codes (n, views, tokens) uint16, labels (n,) int64; keys: names of the source images."""

    codes: np.ndarray
    labels: np.ndarray
    keys: list[str]


def write_shard(path: Path, record: Record) -> None:
    """Write a shard's rows as records of about a thousand, each with its checksum; same rows, same bytes."""
    with open_tar(path) as tar:
        for start in range(0, len(record.labels), ROWS_PER_RECORD):
            part = slice(start, start + ROWS_PER_RECORD)
            content = {
                "codes.npy": _npy(record.codes[part].astype("<u2")),
                "keys.json": json.dumps(record.keys[part]).encode(),
                "labels.npy": _npy(record.labels[part].astype("<i8")),
            }
            key = f"{path.name.strip('.').split('.')[0]}-{start // ROWS_PER_RECORD:04d}"
            tar.write({"__key__": key, **content, "sha256": record_digest(content).encode()})


def record_digest(record: Mapping[str, bytes | memoryview]) -> str:
    """Hex sha256 over the names and contents of a record's members, sorted by name, the digest itself left out."""
    digest = hashlib.sha256()
    for name in sorted(record.keys() - {"sha256"}):
        digest.update(f"{name} {len(record[name])}\n".encode())
        digest.update(record[name])
    return digest.hexdigest()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


Members = dict[str, memoryview]


@dataclass(frozen=True)
class StoredRecord:
    """Rows [start, start + rows) of a shard.

    codes (rows, views, tokens) uint16 and labels (rows,) int64 are views of the shard's bytes; None in a record that
    cannot be read, whose `fault` says why.
    """

    start: int
    rows: int
    codes: np.ndarray | None = None
    labels: np.ndarray | None = None
    fault: str | None = None


def read_records(url: str, manifest: TokenManifest) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """codes (n, views, tokens) and labels (n,) of each record of one shard of the manifest, in order.

    Raises:
        UserError: the shard is missing, truncated or foreign, or a record does not fit the manifest.
    """
    rows = next(shard.rows for shard in manifest.shards if shard.name == Path(url).name)
    with wds.gopen(url) as stream:
        data = stream.read()
    for record in stored_records(data, rows, manifest, url):
        if record.fault:
            raise UserError(record.fault)
        yield record.codes, record.labels


def stored_records(
    data: bytes, rows: int, manifest: TokenManifest, where: str, intact: bool = False
) -> Iterator[StoredRecord]:
    """The records that a shard of so many rows must have, in order, each whole or with its fault.

    Args:
        data: bytes of the shard.
        rows: of it, as the manifest says.
        manifest: of its directory.
        where: name of the shard for messages.
        intact: the bytes have the manifest's sha256, so that the records' own need not be computed.
    """
    found, end = _members(data)
    for start in range(0, rows, ROWS_PER_RECORD):
        number, size = start // ROWS_PER_RECORD, min(ROWS_PER_RECORD, rows - start)
        name = f"{where}, record {number:04d}"
        try:
            if number not in found:
                raise _Corrupt(_missing(found, rows, end))
            codes, labels = (_load(found[number], kind) for kind in ("codes.npy", "labels.npy"))
            _check(codes, labels, size, manifest)
            if not intact:
                _check_digest(found[number])
            yield StoredRecord(start, size, codes, labels)
        except _Corrupt as error:
            yield StoredRecord(start, size, fault=f"{name}: {error}; restore the shard or tokenize again")


class _Corrupt(Exception):
    """Why a record cannot be read."""


def _members(data: bytes) -> tuple[dict[int, Members], str | None]:
    """Members by record number and kind, and why the tar ends early, if it does."""
    found: dict[int, Members] = {}
    try:
        for _, member in members(io.BytesIO(data)):
            key, _, kind = member.name.partition(".")
            content = memoryview(data)[member.offset_data : member.offset_data + member.size]
            number = key.rpartition("-")[2]
            if number.isdecimal() and len(content) == member.size:
                found.setdefault(int(number), {})[kind] = content
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        return found, str(error)
    return found, None


def _missing(found: dict[int, Members], rows: int, end: str | None) -> str:
    if end:
        return f"the shard is truncated or damaged before it ({end})"
    return f"it is missing: the shard holds {len(found)} records, its manifest says {rows} rows"


def _load(record: Members, kind: str) -> np.ndarray:
    """An array without copying it."""
    if kind not in record:
        raise _Corrupt(f"it has no {kind}: this is no token shard of ours")
    head = io.BytesIO(record[kind][:1024])
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head)
        if fortran or dtype.hasobject:
            raise ValueError("not a plain array")
        return np.frombuffer(record[kind], dtype, int(np.prod(shape)), head.tell()).reshape(shape)
    except Exception as error:  # NumPy's reader raises almost anything for damaged headers
        raise _Corrupt(f"{kind} is damaged ({error})") from error


def _check(codes: np.ndarray, labels: np.ndarray, rows: int, manifest: TokenManifest) -> None:
    expected = (rows, manifest.views, manifest.num_tokens)
    if codes.dtype != np.uint16 or codes.shape != expected:
        raise _Corrupt(f"codes are {codes.dtype} {codes.shape}, expected uint16 {expected}")
    if codes.max() >= manifest.codebook_size:
        raise _Corrupt(f"code {codes.max()} is out of range, the codebook has {manifest.codebook_size}")
    classes = len(manifest.class_names)
    if labels.dtype != np.int64 or labels.shape != (rows,):
        raise _Corrupt(f"labels are {labels.dtype} {labels.shape}, expected int64 ({rows},)")
    if not 0 <= labels.min() <= labels.max() < classes:
        worst = labels.min() if labels.min() < 0 else labels.max()
        raise _Corrupt(f"label {worst} is out of range, the manifest names {classes} classes")


def _check_digest(record: Members) -> None:
    """Of the record; shards of the first version have none, so that nothing tells which record is damaged."""
    if "sha256" not in record:
        raise _Corrupt("the shard's sha256 is not its manifest's, and the record has none of its own")
    if bytes(record["sha256"]).decode("ascii", "replace") != record_digest(record):
        raise _Corrupt("its sha256 does not fit its content")
