"""The plan of a token directory: which images go into which shard, fixed before the first one is encoded.

It follows from the listing of the images and the options alone, never from the number of processes, and lies in
the directory as plan.json: whoever continues must come to the same plan.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aim_lightning.data.tokens.format.views import Views
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, write_json

FORMAT = "aim_lightning.token_plan/1"
FILE = "plan.json"


@dataclass(frozen=True)
class TokenizeOptions:
    """How images become shards.

    Args:
        views: stored versions of each image.
        rows_per_shard: images a shard.
        batch_size: images encoded at once; part of the plan, since a code may depend on it.
        precision: ``float32``, ``tf32`` or ``bf16``.
        compile: whether the encoder is compiled.
        on_error: ``error`` or ``skip``: what an unreadable image does. No part of the plan: a job that one
            image stopped may be continued with skip.

    Raises:
        UserError: a value out of range.
    """

    views: Views = field(default_factory=Views)
    rows_per_shard: int = 10000
    batch_size: int = 64
    precision: str = "float32"
    compile: bool = False
    on_error: str = "error"

    def __post_init__(self) -> None:
        for name in ("rows_per_shard", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.on_error not in ("error", "skip"):
            raise UserError(f"on_error is {self.on_error!r}; use error or skip")

    def facts(self) -> dict:
        """What the codes depend on."""
        ranges = {"crop_range": list(self.views.crop_range)} if self.views.kind == "ten_crop" else {}
        encoding = {name: getattr(self, name) for name in ("batch_size", "precision", "compile")}
        return {"views": self.views.kind, **ranges, **encoding}


@dataclass(frozen=True)
class PlannedShard:
    """Images [start, stop) of the listing, encoded in batches of batch_size from `start` on."""

    name: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Images, unreadable ones included."""
        return self.stop - self.start

    def batches(self, batch_size: int) -> list[range]:
        """Rows of each batch; they never cross into another shard."""
        starts = range(self.start, self.stop, batch_size)
        return [range(start, min(start + batch_size, self.stop)) for start in starts]


def plan_shards(rows: int, rows_per_shard: int) -> list[PlannedShard]:
    """The listing cut into equal shards; the last may be smaller."""
    starts = range(0, rows, rows_per_shard)
    return [
        PlannedShard(f"tokens-{number:06d}.tar", start, min(start + rows_per_shard, rows))
        for number, start in enumerate(starts)
    ]


def claim(directory: Path, facts: dict, shards: list[PlannedShard]) -> None:
    """Write plan.json where there is none, and check it.

    Any number of processes may do this at once: they write the same bytes.

    Raises:
        UserError: as `check_claim`.
    """
    check_claim(directory, facts, shards)
    if not (directory / FILE).exists():
        write_json(directory / FILE, _plan(facts, shards))
    check_claim(directory, facts, shards)


def check_claim(directory: Path, facts: dict, shards: list[PlannedShard]) -> None:
    """Whether a directory may be filled by this plan; writes nothing.

    Raises:
        UserError: the directory was begun from something else, or holds tar files of others.
    """
    path = directory / FILE
    if not path.exists():
        if any(directory.glob("*.tar")):
            raise UserError(f"{directory} holds tar files that tokenize did not write; set data.out to a new directory")
        return
    before, plan = read_json(path, "tokenizing plan"), _plan(facts, shards)
    if before.get("format") != FORMAT:
        raise UserError(f"{directory} was written by an earlier version; delete it or set data.out to a new one")
    different = [name for name in plan if before.get(name) != plan[name]]
    if different:
        raise UserError(
            f"{directory} was started with another {', '.join(different)}; delete it or set data.out to a new one"
        )


def _plan(facts: dict, shards: list[PlannedShard]) -> dict:
    plan = {"format": FORMAT, **facts, "shards": [asdict(shard) for shard in shards]}
    return json.loads(json.dumps(plan))  # as it is read back: lists for tuples
