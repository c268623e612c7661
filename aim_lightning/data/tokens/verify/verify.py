"""Checks of a whole token directory: everything that is wrong with it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from aim_lightning.data.tokens.format.manifest import TokenManifest, TokenShard
from aim_lightning.data.tokens.verify.shard_verify import Fault, ShardContent, inspect_shard
from aim_lightning.utils.files import printable, sha256_file

MANIFEST = "manifest.json"


def verify_directory(
    directory: Path,
    tokenizer_hash: str | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[Fault]:
    """Checksums, counts, codes, labels, keys, classes, views, and the tokenizer if its hash is given.

    Args:
        directory: with manifest.json.
        tokenizer_hash: weights_hash that the codes should come from.
        on_rows: hears of every shard's rows as it has been read.

    Raises:
        UserError: there is no manifest, or none that can be read.
    """
    manifest, faults = TokenManifest.load(directory), []
    if tokenizer_hash and tokenizer_hash != manifest.tokenizer_hash:
        hashes = f"its weights hash is {manifest.tokenizer_hash[:12]}…, that of the given one {tokenizer_hash[:12]}…"
        faults.append(Fault(MANIFEST, "", f"another tokenizer wrote the codes: {hashes}"))
    listed = {shard.name for shard in manifest.shards}
    for path in sorted(directory.glob("*.tar")):
        if path.name not in listed and path.name[0] != ".":
            faults.append(Fault(path.name, "", "foreign: the manifest does not list it"))
    counts, keys = np.zeros(len(manifest.class_names), dtype=np.int64), _Keys(manifest)
    for number, shard in enumerate(manifest.shards):
        content = _verify_shard(directory / shard.name, shard, manifest)
        content.faults += keys.repeated(number, shard.name, content.keys)
        for labels in content.labels:
            inside = labels[(labels >= 0) & (labels < len(counts))].astype(np.int64)
            counts += np.bincount(inside, minlength=len(counts))
        faults += content.faults
        on_rows(shard.rows)
    return faults + list(_absent_classes(manifest, counts))


def verify_set(directories: list[Path]) -> Iterator[str]:
    """What keeps directories (train and val) from belonging together."""
    manifests = [TokenManifest.load(directory) for directory in directories]
    for directory, manifest in zip(directories, manifests, strict=True):
        for name in ("tokenizer_hash", "class_names", "grid", "codebook_size"):
            if getattr(manifest, name) != getattr(manifests[0], name):
                yield f"{directory}/{MANIFEST}: another {name} than {directories[0]}/{MANIFEST}"


def _verify_shard(path: Path, shard: TokenShard, manifest: TokenManifest) -> ShardContent:
    if not path.is_file():
        return ShardContent(faults=[Fault(shard.name, "", "missing")])
    content = inspect_shard(path, manifest)
    if content.rows != shard.rows:
        content.faults.append(Fault(shard.name, "", f"{content.rows} rows can be read, the manifest says {shard.rows}"))
    try:
        same = sha256_file(path) == shard.sha256
    except OSError as error:
        content.faults.append(Fault(shard.name, "", f"cannot be read to its end ({error}): look at the disk"))
        return content
    if not same:
        content.faults.append(Fault(shard.name, "", "its sha256 is not the manifest's: another file, or changed bytes"))
    return content


class _Keys:
    """No image twice within one source (merged sources may use the same names)."""

    def __init__(self, manifest: TokenManifest) -> None:
        self.source = [number for number, source in enumerate(manifest.sources) for _ in range(source.shards)]
        self.seen: list[dict[str, str]] = [{} for _ in manifest.sources]  # where each key was, by source

    def repeated(self, number: int, shard: str, keys: dict[str, list[str]]) -> Iterator[Fault]:
        seen = self.seen[self.source[number]]
        for record, names in keys.items():
            place = f"{shard}, record {record}"
            for key in names:
                if key in seen:
                    yield Fault(shard, record, f"image {printable(key)} comes twice (also in {seen[key]})")
                seen[key] = place


def _absent_classes(manifest: TokenManifest, counts: np.ndarray) -> Iterator[Fault]:
    for label in np.flatnonzero(counts == 0):
        yield Fault(MANIFEST, "", f"class {label} ({manifest.class_names[label]}) has no image in any shard")
