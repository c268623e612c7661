"""Plan and progress of a token directory.

plan.json maps images to shards. It depends on the list of images and the options only, never on the number of
processes: every process of a job, and every continuation, computes the same plan.

A shard's tar appears by rename, then its record finished/NAME.json, also by rename. A shard with a record is complete;
one without is written again. Processes share nothing but these files.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from aim_lightning.data.tokens.format.manifest import Skipped, TokenManifest, TokenShard
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, remove_abandoned, write_json

FORMAT = "aim_lightning.token_plan/1"
PLAN = "plan.json"
FINISHED = "finished"


@dataclass(frozen=True)
class PlannedShard:
    """Images [start, stop) of the source, encoded in batches of batch_size from `start` on."""

    name: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Return the number of images, including unreadable ones."""
        return self.stop - self.start

    def batches(self, batch_size: int) -> list[range]:
        """Return the rows of each batch.

        Args:
            batch_size: images per batch. The last batch may be smaller: batches never span two shards.
        """
        bounds = [*range(self.start, self.stop, batch_size), self.stop]
        return [range(start, stop) for start, stop in pairwise(bounds)]

    @classmethod
    def plan(cls, rows: int, rows_per_shard: int) -> list["PlannedShard"]:
        """Cut the rows into shards of equal size; the last may be smaller.

        Args:
            rows: number of images.
            rows_per_shard: images per shard.
        """
        bounds = [*range(0, rows, rows_per_shard), rows]
        return [cls(f"tokens-{number:06d}.tar", *ends) for number, ends in enumerate(pairwise(bounds))]


def claim(directory: Path, settings: dict, shards: list[PlannedShard], write: bool = True) -> None:
    """Check that a directory may be filled by this plan, and write plan.json if it does not exist.

    Concurrent calls are safe: all processes write the same bytes.

    Args:
        directory: the token directory.
        settings: everything that determines the content of the shards.
        shards: planned shards.
        write: False to check only.

    Raises:
        UserError: the directory was started with another plan, or contains tar files of another origin.
    """
    path, plan = directory / PLAN, {"format": FORMAT, **settings, "shards": [asdict(shard) for shard in shards]}
    if not path.exists():
        if any(directory.glob("*.tar")):
            raise UserError(f"{directory} holds tar files that tokenize did not write; set data.out to a new directory")
        if not write:
            return
        write_json(path, plan)
    # Read back after writing: another process may have written another plan in the meantime.
    stored, plan = read_json(path, "tokenizing plan"), json.loads(json.dumps(plan))  # JSON has no tuples
    if different := [name for name in plan if stored.get(name) != plan[name]]:
        fact = f"{directory} was started with another {', '.join(different)}"
        raise UserError(f"{fact}; delete it or set data.out to a new one")


@dataclass(frozen=True)
class FinishedShard:
    """Result of a planned shard: rows and bytes written, and the images left out.

    A shard without a readable image has 0 rows and no tar file.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    device: str
    skipped: list[Skipped] = field(default_factory=list)

    def save(self, directory: Path) -> None:
        """Write the record, which states that the tar file is complete.

        Args:
            directory: the token directory.
        """
        write_json(directory / FINISHED / f"{self.name}.json", asdict(self))


def read_finished(directory: Path, shards: list[PlannedShard]) -> dict[str, FinishedShard]:
    """Return finished shards by name; one whose tar is missing or of another size counts as unfinished.

    Args:
        directory: the token directory.
        shards: planned shards to look for.
    """
    # List the directory once instead of opening each name: network file systems may cache that a name was absent.
    records, finished = directory / FINISHED, {}
    names = {path.name for path in records.iterdir()} if records.is_dir() else set()
    for name in (shard.name for shard in shards if f"{shard.name}.json" in names):
        path, tar = records / f"{name}.json", directory / name
        values = read_json(path, "record of a finished shard")
        try:
            shard = FinishedShard(**values | {"skipped": [Skipped(**item) for item in values["skipped"]]})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it, and its shard is written again") from None
        if not shard.rows or (tar.is_file() and tar.stat().st_size == shard.bytes):
            finished[name] = shard
    return finished


def write_manifest(directory: Path, manifest: TokenManifest, shards: list[PlannedShard]) -> TokenManifest | None:
    """Complete and save the manifest if all planned shards are finished.

    Processes that do this at the same time write the same bytes.

    Args:
        directory: the token directory.
        manifest: manifest without shards.
        shards: all planned shards.

    Returns:
        The complete manifest, or None while shards are unfinished.

    Raises:
        UserError: no image of the set could be decoded.
    """
    finished = read_finished(directory, shards)
    if len(finished) < len(shards):
        return None
    ordered = [finished[shard.name] for shard in shards]
    if not any(shard.rows for shard in ordered):
        raise UserError(f"none of the images for {directory} could be read; the first: {ordered[0].skipped[0].reason}")
    manifest = replace(
        manifest,
        shards=[TokenShard(shard.name, shard.rows, shard.sha256) for shard in ordered if shard.rows],
        skipped=[item for shard in ordered for item in shard.skipped],
        encoding=manifest.encoding | {"devices": sorted({shard.device for shard in ordered})},
    )
    manifest.save(directory)
    remove_abandoned(directory, directory / FINISHED)
    return manifest
