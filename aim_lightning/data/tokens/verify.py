"""Verify token directories: report every fault, not just the first."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from aim_lightning.data.tokens.format.manifest import MANIFEST, TokenManifest, TokenShard
from aim_lightning.data.tokens.format.record_format import array_faults, has_valid_digest, load_array, read_members
from aim_lightning.utils.files import printable

MEMBERS = {"codes.npy", "keys.json", "labels.npy"}


@dataclass(frozen=True)
class Fault:
    """A fault with its file, its record (empty for the whole file) and its description."""

    shard: str
    record: str
    text: str

    def __str__(self) -> str:
        return f"{self.shard}, record {self.record}: {self.text}" if self.record else f"{self.shard}: {self.text}"


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
    manifest = TokenManifest.load(directory)
    verifier = _Verifier(manifest)
    if tokenizer_hash and tokenizer_hash != manifest.tokenizer_hash:
        hashes = f"its weights hash is {manifest.tokenizer_hash[:12]}…, expected {tokenizer_hash[:12]}…"
        verifier.add(MANIFEST, f"another tokenizer wrote the codes: {hashes}")
    listed = {shard.name for shard in manifest.shards}
    for path in sorted(directory.glob("*.tar")):
        if path.name not in listed and path.name[0] != ".":
            verifier.add(path.name, "foreign: the manifest does not list it")
    source_ends = set(accumulate(source.shards for source in manifest.sources))
    for number, shard in enumerate(manifest.shards):
        if number in source_ends:  # merged sources may use the same keys
            verifier.first_use = {}
        verifier.check_shard(directory / shard.name, shard)
        on_rows(shard.rows)
    for label in np.flatnonzero(verifier.class_counts == 0):
        verifier.add(MANIFEST, f"class {label} ({manifest.class_names[label]}) has no image in any shard")
    return verifier.faults


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


class _Verifier:
    """Collects the faults of the shards of one directory."""

    def __init__(self, manifest: TokenManifest) -> None:
        self.manifest = manifest
        self.faults: list[Fault] = []
        self.class_counts = np.zeros(len(manifest.class_names), dtype=np.int64)
        self.first_use: dict[str, str] = {}  # record of each key of the current source

    def add(self, shard: str, text: str, record: str = "") -> None:
        self.faults.append(Fault(shard, record, text))

    def check_shard(self, path: Path, shard: TokenShard) -> None:
        """Check every record of a shard; continue after a damaged one."""
        if not path.is_file():
            self.add(path.name, "no regular file" if path.exists() else "missing")
            return
        try:
            data = path.read_bytes()
        except OSError as error:
            self.add(path.name, f"cannot be read to its end ({error}): check the disk")
            return
        records, end_reason = read_members(data)
        if end_reason and records:
            records.popitem()  # the last one may be incomplete
        foreign = [name for name, record in records.items() if not record.keys() >= MEMBERS]
        rows = sum(self._check_record(path.name, *item) for item in records.items() if item[0] not in foreign)
        if end_reason:
            last = f" after record {[*records][-1]}" if records else ""
            self.add(path.name, f"truncated or damaged{last} ({end_reason})")
        if foreign:
            text = f"lacks {', '.join(sorted(MEMBERS))}: no token record ({len(foreign)} such records)"
            self.add(path.name, text, foreign[0])
        if rows != shard.rows:
            self.add(path.name, f"{rows} rows can be read, the manifest says {shard.rows}")
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            self.add(path.name, "its sha256 is not the manifest's: another file, or changed bytes")

    def _check_record(self, shard: str, name: str, record: dict[str, memoryview]) -> int:
        """Return the number of rows that can be read."""
        if not has_valid_digest(record):
            self.add(shard, "its checksum differs: bytes were changed after it was written", name)
        try:
            codes, labels = (load_array(record, member) for member in ("codes.npy", "labels.npy"))
            keys = [str(key) for key in json.loads(bytes(record["keys.json"]))]
            faults = list(array_faults(codes, labels, len(labels), self.manifest))
        except Exception as error:  # of any type, for bytes that are no array or no JSON
            self.add(shard, f"cannot be decoded ({error})", name)
            return 0
        if len(keys) != len(labels):
            faults.insert(0, f"{len(keys)} keys for {len(labels)} labels")
        for key in keys:
            if key in self.first_use:
                faults.append(f"image {printable(key)} comes twice (also in {self.first_use[key]})")
            self.first_use[key] = f"{shard}, record {name}"
        for text in faults:
            self.add(shard, text, name)
        classes = len(self.class_counts)
        valid = labels[(labels >= 0) & (labels < classes)].astype(np.int64)
        self.class_counts += np.bincount(valid, minlength=classes)
        return len(labels)
