"""Verify token directories: report every fault, not just the first."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aim_lightning.data.images.tar import tar_members
from aim_lightning.data.tokens.format.manifest import MANIFEST, TokenManifest, TokenShard
from aim_lightning.data.tokens.format.record_format import array_faults, has_valid_digest
from aim_lightning.utils.files import printable, sha256_file

MEMBERS = ("codes.npy", "keys.json", "labels.npy")


@dataclass(frozen=True)
class Fault:
    """A fault with its file, its record (empty for the whole file) and its description."""

    shard: str
    record: str
    text: str

    def __str__(self) -> str:
        return f"{self.shard}, record {self.record}: {self.text}" if self.record else f"{self.shard}: {self.text}"


@dataclass
class ShardContent:
    """Readable content of a shard: rows, labels (n,) per record, keys by record name, and all faults."""

    rows: int = 0
    labels: list[np.ndarray] = field(default_factory=list)
    keys: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def verify_directory(
    directory: Path, tokenizer_hash: str | None = None, on_rows: Callable[[int], None] = lambda rows: None
) -> list[Fault]:
    """Check checksums, counts, codes, labels, keys, classes, views, and optionally the tokenizer.

    Args:
        directory: token directory with manifest.json.
        tokenizer_hash: expected weights_hash of the tokenizer; None = any.
        on_rows: called with the number of rows after each shard.

    Raises:
        UserError: the manifest is missing or unreadable.
    """
    manifest, faults = TokenManifest.load(directory), []
    if tokenizer_hash and tokenizer_hash != manifest.tokenizer_hash:
        hashes = f"its weights hash is {manifest.tokenizer_hash[:12]}…, expected {tokenizer_hash[:12]}…"
        faults.append(Fault(MANIFEST, "", f"another tokenizer wrote the codes: {hashes}"))
    listed = {shard.name for shard in manifest.shards}
    for path in sorted(directory.glob("*.tar")):
        if path.name not in listed and path.name[0] != ".":
            faults.append(Fault(path.name, "", "foreign: the manifest does not list it"))
    counts, keys = np.zeros(len(manifest.class_names), dtype=np.int64), _UsedKeys(manifest)
    for number, shard in enumerate(manifest.shards):
        content = _verify_shard(directory / shard.name, shard, manifest)
        content.faults += keys.repeated(number, shard.name, content.keys)
        for labels in content.labels:
            valid = labels[(labels >= 0) & (labels < len(counts))].astype(np.int64)
            counts += np.bincount(valid, minlength=len(counts))
        faults += content.faults
        on_rows(shard.rows)
    for label in np.flatnonzero(counts == 0):
        text = f"class {label} ({manifest.class_names[label]}) has no image in any shard"
        faults.append(Fault(MANIFEST, "", text))
    return faults


def verify_set(directories: list[Path]) -> Iterator[str]:
    """Yield every difference that prevents directories from forming one set.

    Args:
        directories: token directories, such as train and val.
    """
    manifests = [TokenManifest.load(directory) for directory in directories]
    for directory, manifest in zip(directories, manifests, strict=True):
        for name in ("tokenizer_hash", "class_names", "grid", "codebook_size"):
            if getattr(manifest, name) != getattr(manifests[0], name):
                yield f"{directory}/{MANIFEST}: another {name} than {directories[0]}/{MANIFEST}"


def _verify_shard(path: Path, shard: TokenShard, manifest: TokenManifest) -> ShardContent:
    if not path.is_file():
        fact = "no regular file" if path.exists() else "missing"
        return ShardContent(faults=[Fault(shard.name, "", fact)])
    content = _read_shard(path, manifest)
    if content.rows != shard.rows:
        content.faults.append(Fault(shard.name, "", f"{content.rows} rows can be read, the manifest says {shard.rows}"))
    try:
        if sha256_file(path) != shard.sha256:
            text = "its sha256 is not the manifest's: another file, or changed bytes"
            content.faults.append(Fault(shard.name, "", text))
    except OSError as error:
        content.faults.append(Fault(shard.name, "", f"cannot be read to its end ({error}): check the disk"))
    return content


def _read_shard(path: Path, manifest: TokenManifest) -> ShardContent:
    """Read every record of a shard; continue after a damaged one."""
    content, foreign, name = ShardContent(), [], ""
    try:
        for name, record in _records(path):
            if all(member in record for member in MEMBERS):
                _add_record(record, manifest, content, path.name, name)
            else:
                foreign.append(name)
    except (tarfile.TarError, OSError, EOFError) as error:
        after = f" after record {name}" if name else ""
        content.faults.append(Fault(path.name, "", f"truncated or damaged{after} ({error})"))
    if foreign:
        text = f"lacks {', '.join(MEMBERS)}: no token record ({len(foreign)} such records)"
        content.faults.append(Fault(path.name, foreign[0], text))
    return content


def _records(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (name, members by extension) of each complete record."""
    name, record = "", {}
    with path.open("rb") as file:
        for tar, member in tar_members(file):
            stem, _, extension = member.name.partition(".")
            if name and stem != name:
                yield name, record
                record = {}
            name = stem
            content = tar.extractfile(member) if member.isreg() else None
            record[extension] = content.read() if content else b""
    if name:
        yield name, record


def _add_record(
    record: dict[str, bytes], manifest: TokenManifest, content: ShardContent, shard: str, name: str
) -> None:
    if not has_valid_digest(record):
        content.faults.append(Fault(shard, name, "its checksum differs: bytes were changed after it was written"))
    try:
        codes, labels = (np.load(io.BytesIO(record[file]), allow_pickle=False) for file in ("codes.npy", "labels.npy"))
        keys = [str(key) for key in json.loads(record["keys.json"])]
        faults = list(array_faults(codes, labels, len(labels), manifest))
    except Exception as error:  # NumPy raises almost any exception for a damaged header
        content.faults.append(Fault(shard, name, f"cannot be decoded ({error})"))
        return
    if len(keys) != len(labels):
        faults.insert(0, f"{len(keys)} keys for {len(labels)} labels")
    content.faults += [Fault(shard, name, text) for text in faults]
    content.rows += len(labels)
    content.labels.append(labels)
    content.keys.setdefault(name, []).extend(keys)


class _UsedKeys:
    """Keys seen so far, per source: merged sources may use the same names."""

    def __init__(self, manifest: TokenManifest) -> None:
        self.source = [number for number, source in enumerate(manifest.sources) for _ in range(source.shards)]
        self.records: list[dict[str, str]] = [{} for _ in manifest.sources]  # record of each key, by source

    def repeated(self, number: int, shard: str, keys: dict[str, list[str]]) -> Iterator[Fault]:
        """Yield a fault for each key of a shard that its source used before."""
        used = self.records[self.source[number]]
        for record, names in keys.items():
            for key in names:
                if key in used:
                    yield Fault(shard, record, f"image {printable(key)} comes twice (also in {used[key]})")
                used[key] = f"{shard}, record {record}"
