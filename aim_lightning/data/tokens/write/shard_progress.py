"""Records of finished shards, from which whoever sees all of them writes the manifest.

A shard's tar appears by rename, then its record finished/NAME.json, also by rename: a shard with a record is whole,
one without is written again. Processes share nothing but these files.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from aim_lightning.data.tokens.format.manifest import Skipped, TokenManifest, TokenShard
from aim_lightning.data.tokens.format.shard_plan import PlannedShard
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import abandoned, read_json, sha256_file, write_json

DIRECTORY = "finished"


@dataclass(frozen=True)
class FinishedShard:
    """What became of a planned shard: rows and bytes written, and the images left out.

    A shard without a readable image has 0 rows and no tar.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    device: str
    skipped: list[Skipped] = field(default_factory=list)


def record_finished(directory: Path, shard: FinishedShard) -> None:
    """Say that the shard's tar is in place."""
    write_json(_path(directory, shard.name), asdict(shard))


def read_finished(directory: Path, shards: list[PlannedShard]) -> dict[str, FinishedShard]:
    """Finished shards by name; one whose tar is gone or of another size counts as unfinished."""
    # One listing, not a look at each name: network file systems may remember that a name was absent.
    place = directory / DIRECTORY
    present = {path.name for path in place.iterdir()} if place.is_dir() else set()
    found = [_read(directory, shard.name) for shard in shards if f"{shard.name}.json" in present]
    return {shard.name: shard for shard in found if _in_place(directory, shard)}


def is_intact(directory: Path, shard: FinishedShard) -> bool:
    """Whether a finished shard's tar has the bytes that were written; reads all of them."""
    try:
        return not shard.rows or sha256_file(directory / shard.name) == shard.sha256
    except OSError:
        return False


def _path(directory: Path, name: str) -> Path:
    return directory / DIRECTORY / f"{name}.json"


def _read(directory: Path, name: str) -> FinishedShard:
    path = _path(directory, name)
    values = read_json(path, "record of a finished shard")
    try:
        return FinishedShard(**{**values, "skipped": [Skipped(**item) for item in values["skipped"]]})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and its shard is made again") from None


def _in_place(directory: Path, shard: FinishedShard) -> bool:
    path = directory / shard.name
    return not shard.rows or (path.is_file() and path.stat().st_size == shard.bytes)


def write_manifest(directory: Path, manifest: TokenManifest, shards: list[PlannedShard]) -> TokenManifest | None:
    """Complete the manifest and save it, once all planned shards are finished; None before.

    Processes that see this at the same time write the same bytes.

    Raises:
        UserError: no image of the set could be read.
    """
    finished = read_finished(directory, shards)
    if len(finished) < len(shards):
        return None
    done = [finished[shard.name] for shard in shards]
    if not any(shard.rows for shard in done):
        raise UserError(f"none of the images for {directory} could be read; the first: {done[0].skipped[0].reason}")
    manifest = manifest.with_shards(
        [TokenShard(s.name, s.rows, s.sha256) for s in done if s.rows],
        skipped=[item for shard in done for item in shard.skipped],
        devices=sorted({shard.device for shard in done}),
    )
    manifest.save(directory)
    for leftover in [*abandoned(directory), *abandoned(directory / DIRECTORY)]:
        leftover.unlink(missing_ok=True)
    return manifest
