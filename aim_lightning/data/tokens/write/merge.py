"""Several token directories of one tokenizer become one; shards are linked or copied, never rewritten."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from aim_lightning.data.tokens.format.manifest import Source, TokenManifest, TokenShard
from aim_lightning.data.tokens.format.shard_plan import claim
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path, sha256_file
from aim_lightning.utils.progress import progress

# What the parts must have in common.
SAME = ("tokenizer_hash", "grid", "codebook_size", "class_names", "views")


def merge_directories(directories: list[Path], out: Path) -> TokenManifest:
    """Write the rows of all directories, one after the other, to `out`; stopped and started again, it continues.

    Args:
        directories: each with a manifest.json.
        out: the new one.

    Raises:
        UserError: fewer than two directories, directories that do not belong together, a shard that is not the one its
            manifest describes, or an `out` that was begun from something else.
    """
    if len(directories) < 2:
        raise UserError("merge needs two or more directories, and --out for the new one")
    if Path(out).resolve() in [directory.resolve() for directory in directories]:
        raise UserError(f"--out {out} is one of the directories to merge; give a new one")
    manifests = [TokenManifest.load(directory) for directory in directories]
    merged = _merged(directories, manifests)
    facts = {name: getattr(merged, name) for name in ("source", *SAME)}
    claim(out, {"merged": facts}, [])
    pairs = zip(directories, manifests, strict=True)
    old = [directory / shard.name for directory, manifest in pairs for shard in manifest.shards]
    for path, shard in progress(list(zip(old, merged.shards, strict=True)), f"merging into {out}"):
        _take(path, out / shard.name, shard.sha256)
    merged.save(out)
    return merged


def _merged(directories: list[Path], manifests: list[TokenManifest]) -> TokenManifest:
    first = manifests[0]
    for directory, manifest in zip(directories, manifests, strict=True):
        different = [name for name in SAME if getattr(manifest, name) != getattr(first, name)]
        if different:
            raise UserError(
                f"{directory} has another {', '.join(different)} than {directories[0]}; merge needs equal ones"
            )
    sources = [source for manifest in manifests for source in manifest.sources]
    prints = [source.fingerprint for source in sources]
    if twice := next((source for source in prints if prints.count(source) > 1), None):
        raise UserError(f"two of the directories hold the same images (source {twice[:12]}…); merge each set once")
    shards = [shard for manifest in manifests for shard in manifest.shards]
    return replace(
        first,
        source="+".join(prints),
        shards=[TokenShard(f"tokens-{i:06d}.tar", s.rows, s.sha256) for i, s in enumerate(shards)],
        encoding={},
        skipped=[item for manifest in manifests for item in manifest.skipped],
        merged=[Source(s.fingerprint, s.encoding, s.shards) for s in sources],
    )


def _take(path: Path, to: Path, sha256: str) -> None:
    """Put a shard in place: as a hard link, or as a copy on another file system."""
    advice = f"see `aim-lightning shards verify {path.parent}`"
    if not path.is_file():
        raise UserError(f"{path} is missing; {advice}")
    if sha256_file(path) != sha256:
        raise UserError(f"{path} is not the shard that its manifest describes; {advice}")
    with atomic_path(to) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
