"""Packed records of token shards: deterministic writing, checked reading."""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aim_lightning.data.images.tar import TAR_ERRORS, open_tar, tar_members
from aim_lightning.data.tokens.format.manifest import TokenManifest

ROWS_PER_RECORD = 1000
# The header that np.save writes for a plain array in C order.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '([<|][a-z]\d+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), } *\n", re.DOTALL
)
Members = dict[str, memoryview]  # content by name, such as codes.npy


def write_shard(path: Path, codes: np.ndarray, labels: np.ndarray, keys: list[str]) -> None:
    """Write rows as a shard of records with one checksum each; the same rows give the same bytes.

    Args:
        path: the tar file.
        codes: (n, views, tokens) uint16; each stored record packs about a thousand rows.
        labels: (n,) int64.
        keys: keys of the n source images.
    """
    with open_tar(path) as tar:
        for start in range(0, len(labels), ROWS_PER_RECORD):
            part = slice(start, start + ROWS_PER_RECORD)
            content = {
                # Explicit byte order: the bytes and checksums must be equal on every machine.
                "codes.npy": _npy(codes[part].astype("<u2")),
                "keys.json": json.dumps(keys[part]).encode(),
                "labels.npy": _npy(labels[part].astype("<i8")),
            }
            key = f"{path.name.strip('.').split('.')[0]}-{start // ROWS_PER_RECORD:04d}"
            tar.write({"__key__": key, **content, "sha256": record_digest(content).encode()})


def record_digest(record: Mapping[str, bytes | memoryview]) -> str:
    """Return the hex sha256 of a record.

    Args:
        record: member contents by name. Names are hashed in sorted order, the stored digest itself is left out.
    """
    digest = hashlib.sha256()
    for name in sorted(record.keys() - {"sha256"}):
        digest.update(f"{name} {len(record[name])}\n".encode())
        digest.update(record[name])
    return digest.hexdigest()


def has_valid_digest(record: Mapping[str, bytes | memoryview]) -> bool:
    """Return True if the stored sha256 of a record matches its other members.

    Args:
        record: member contents by name.
    """
    return bytes(record.get("sha256", b"")).decode("ascii", "replace") == record_digest(record)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


@dataclass(frozen=True)
class StoredRecord:
    """Consecutive rows of a shard, the slice `part`.

    codes (rows, views, tokens) uint16 and labels (rows,) int64 are views of the shard's bytes. In a record that
    cannot be read they are None and `fault` contains the reason.
    """

    part: slice
    codes: np.ndarray | None = None
    labels: np.ndarray | None = None
    fault: str | None = None


def stored_records(
    data: bytes, rows: int, manifest: TokenManifest, where: str, intact: bool = False
) -> Iterator[StoredRecord]:
    """Yield the expected records of a shard in order, each with its arrays or its fault.

    Args:
        data: bytes of the shard.
        rows: rows of the shard in the manifest.
        manifest: manifest of its directory.
        where: name of the shard for messages.
        intact: True if the sha256 of `data` matches the manifest; the digests of the records are then not computed.
    """
    named, end_reason = read_members(data)
    # Records are found by number: those of a merged directory keep the names of its parts.
    numbers = {name: name.rpartition("-")[2] for name in named}
    records = {int(number): named[name] for name, number in numbers.items() if number.isdecimal()}
    for start in range(0, rows, ROWS_PER_RECORD):
        number, size = start // ROWS_PER_RECORD, min(ROWS_PER_RECORD, rows - start)
        part = slice(start, start + size)
        try:
            if number not in records:
                early = f"the shard is truncated or damaged before it ({end_reason})"
                absent = f"it is missing: the shard holds {len(records)} records, its manifest says {rows} rows"
                raise CorruptRecord(early if end_reason else absent)
            codes, labels = (load_array(records[number], name) for name in ("codes.npy", "labels.npy"))
            for fault in array_faults(codes, labels, size, manifest):
                raise CorruptRecord(fault)
            if not intact and not has_valid_digest(records[number]):
                raise CorruptRecord("its sha256 does not match its content")
            yield StoredRecord(part, codes, labels)
        except CorruptRecord as error:
            fault = f"{where}, record {number:04d}: {error}; restore the shard or tokenize again"
            yield StoredRecord(part, fault=fault)


class CorruptRecord(Exception):
    """The reason why a record cannot be read."""


def read_members(data: bytes) -> tuple[dict[str, Members], str]:
    """Return the members of each record by its name, and the reason of an early end of the tar or ''.

    Args:
        data: bytes of a shard. The last record before an early end may be incomplete.
    """
    records: dict[str, Members] = {}
    try:
        for _, member in tar_members(io.BytesIO(data)):
            key, _, name = member.name.partition(".")
            # A view: copying the codes would double the memory of a shard.
            content = memoryview(data)[member.offset_data : member.offset_data + member.size]
            if len(content) == member.size:
                records.setdefault(key, {})[name] = content
    except (*TAR_ERRORS, ValueError) as error:
        return records, str(error)
    return records, ""


def load_array(record: Members, name: str) -> np.ndarray:
    """Return a view of an array in a record.

    Args:
        record: member contents by name.
        name: ``codes.npy`` or ``labels.npy``.

    Raises:
        CorruptRecord: the array is absent or damaged.
    """
    if name not in record:
        raise CorruptRecord(f"it has no {name}: the file is no token shard")
    # np.load would copy the array. NumPy's parser of headers calls `ast`, which fails now and then in two threads.
    header = _NPY_HEADER.match(record[name])
    try:
        if not header:
            raise ValueError("not a plain array")
        dtype, shape = header[1].decode(), [int(size) for size in re.findall(rb"\d+", header[2])]
        return np.frombuffer(record[name], dtype, math.prod(shape), header.end()).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:  # a damaged type or shape
        raise CorruptRecord(f"{name} is damaged ({error})") from error


def array_faults(codes: np.ndarray, labels: np.ndarray, rows: int, manifest: TokenManifest) -> Iterator[str]:
    """Yield every mismatch between a record's arrays and the manifest.

    Args:
        codes: stored codes, expected as (rows, views, tokens) uint16.
        labels: stored labels, expected as (rows,) int64.
        rows: expected number of rows.
        manifest: manifest of the directory.
    """
    classes, expected = len(manifest.class_names), (rows, manifest.views, manifest.num_tokens)
    if codes.dtype != np.uint16 or codes.shape != expected:
        yield f"codes are {codes.dtype} {codes.shape}, expected uint16 {expected} (rows, views, codes per image)"
    # max() first: it is far cheaper than the search for the positions, and this runs on every record that is read.
    elif codes.size and codes.max() >= manifest.codebook_size:
        wrong = np.argwhere(codes >= manifest.codebook_size)
        row, view, position = wrong[0]
        code, count = codes[row, view, position], f"({len(wrong)} such codes)"
        yield f"row {row}, view {view}: code {code} is out of range, the codebook has {manifest.codebook_size} {count}"
    if labels.dtype != np.int64 or labels.shape != (rows,):
        yield f"labels are {labels.dtype} {labels.shape}, expected int64 ({rows},)"
    elif len(wrong := np.flatnonzero((labels < 0) | (labels >= classes))):
        label, count = labels[wrong[0]], f"({len(wrong)} such labels)"
        yield f"row {wrong[0]}: label {label} is out of range, the manifest names {classes} classes {count}"
