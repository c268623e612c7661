"""Merge token directories of one tokenizer; shards are linked or copied, never rewritten."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from aim_lightning.data.tokens.format.manifest import TokenManifest, TokenShard
from aim_lightning.data.tokens.write.shard_plan import claim
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path, sha256_file
from aim_lightning.utils.progress import progress

EQUAL_FIELDS = ("tokenizer_hash", "grid", "codebook_size", "class_names", "views")


def merge_directories(directories: list[Path], out: Path) -> TokenManifest:
    """Write the rows of all directories in order to a new one; continue an interrupted merge.

    Args:
        directories: token directories, each with a manifest.json.
        out: the new directory.

    Raises:
        UserError: fewer than two directories, directories that differ in tokenizer, classes or views, a shard that
            does not match its manifest, or an `out` that was started with other directories.
    """
    if len(directories) < 2:
        raise UserError("merge needs two or more directories, and --out for the new one")
    if Path(out).resolve() in [directory.resolve() for directory in directories]:
        raise UserError(f"--out {out} is one of the directories to merge; set a new one")
    manifests = [TokenManifest.load(directory) for directory in directories]
    merged = _merged_manifest(directories, manifests)
    claim(out, {"merged": {name: getattr(merged, name) for name in ("source", *EQUAL_FIELDS)}}, [])
    pairs = zip(directories, manifests, strict=True)
    paths = [directory / shard.name for directory, manifest in pairs for shard in manifest.shards]
    for path, shard in progress(list(zip(paths, merged.shards, strict=True)), f"merging into {out}"):
        fix = f"see `aim-lightning shards verify {path.parent}`"
        if not path.is_file():
            raise UserError(f"{path} is missing; {fix}")
        if sha256_file(path) != shard.sha256:
            raise UserError(f"{path} is not the shard that its manifest describes; {fix}")
        with atomic_path(out / shard.name) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # another file system
                shutil.copyfile(path, temporary)
    merged.save(out)  # last: it marks the directory as complete
    return merged


def _merged_manifest(directories: list[Path], manifests: list[TokenManifest]) -> TokenManifest:
    first = manifests[0]
    for directory, manifest in zip(directories, manifests, strict=True):
        if different := [name for name in EQUAL_FIELDS if getattr(manifest, name) != getattr(first, name)]:
            raise UserError(f"{directory} has another {', '.join(different)} than {directories[0]}; merge equal ones")
    sources = [source for manifest in manifests for source in manifest.sources]
    fingerprints = [source.fingerprint for source in sources]
    if repeated := next((text for text in fingerprints if fingerprints.count(text) > 1), None):
        raise UserError(f"two of the directories hold the same images (source {repeated[:12]}…); merge each set once")
    shards = [shard for manifest in manifests for shard in manifest.shards]
    return replace(
        first,
        source="+".join(fingerprints),
        shards=[TokenShard(f"tokens-{i:06d}.tar", s.rows, s.sha256) for i, s in enumerate(shards)],
        encoding={},
        skipped=[item for manifest in manifests for item in manifest.skipped],
        merged=sources,
    )
