"""manifest.json of a directory of token shards: what is in them, and what wrote them."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_json

FORMAT = "aim_lightning.tokens/1"
LARGEST_CODEBOOK = 65536  # codes are stored as uint16
# What directories of the first version have too.
REQUIRED = ("grid", "codebook_size", "class_names", "views", "tokenizer_hash", "source", "shards")


@dataclass(frozen=True)
class TokenShard:
    """One tar file: its name in the directory, rows (images) in it and the sha256 of its bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read: its key in the source and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Source:
    """Images of consecutive shards: their fingerprint, how they were encoded, and how many shards hold them."""

    fingerprint: str
    encoding: dict
    shards: int


@dataclass(frozen=True)
class TokenManifest:
    """Everything a reader must know before it opens a shard.

    Args:
        grid: codes an image, (rows, columns).
        codebook_size: codes run from 0 to codebook_size - 1.
        class_names: by label.
        views: stored versions of each image (1 = center crop, 2 = with its mirror image, 10 or 20 = ten-crop).
        tokenizer_hash: weights_hash of the tokenizer that wrote the codes.
        source: fingerprint of the images.
        shards: in dataset order: row r of the set is row r of the shards read one after the other.
        encoding: views, precision, batch size and devices that wrote the codes; empty in old directories.
        skipped: images left out because they could not be read.
        merged: what the directory was merged from, in the order of the shards; empty for one source.
    """

    grid: tuple[int, int]
    codebook_size: int
    class_names: list[str]
    views: int
    tokenizer_hash: str
    source: str
    shards: list[TokenShard] = field(default_factory=list)
    encoding: dict = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    merged: list[Source] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Images in the set."""
        return sum(shard.rows for shard in self.shards)

    @property
    def first_rows(self) -> np.ndarray:
        """Dataset row of each shard's first row, and the number of rows at the end."""
        return np.cumsum([0, *(shard.rows for shard in self.shards)])

    @property
    def num_tokens(self) -> int:
        """Codes an image."""
        return self.grid[0] * self.grid[1]

    @property
    def sources(self) -> list[Source]:
        """Where the rows come from, in the order of the shards."""
        return self.merged or [Source(self.source, self.encoding, len(self.shards))]

    def with_shards(self, shards: list[TokenShard], skipped: list[Skipped], devices: list[str]) -> "TokenManifest":
        """The same, of finished shards."""
        return replace(self, shards=shards, skipped=skipped, encoding={**self.encoding, "devices": devices})

    def save(self, directory: Path) -> None:
        """Write manifest.json atomically; its presence says that the directory is complete."""
        write_json(directory / "manifest.json", {"format": FORMAT, "rows": self.rows, **asdict(self)})

    @classmethod
    def load(cls, directory: str | Path) -> "TokenManifest":
        """Read and check manifest.json.

        Raises:
            UserError: missing, of another format, or inconsistent.
        """
        path = Path(directory) / "manifest.json"
        if not path.exists():
            raise UserError(
                f"{path} does not exist: {directory} is no finished directory of token shards; make it with "
                "`make tokenize EXP=…` or set data.path"
            )
        return cls.parse(path.read_text(encoding="utf-8"), path)

    @classmethod
    def parse(cls, text: str, where: str | Path) -> "TokenManifest":
        """The manifest from its text; `where` names it in errors.

        Raises:
            UserError: of another format, or inconsistent.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f"token manifest {where} is not readable JSON ({error})") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise UserError(f"{where} has format {found!r}, expected {FORMAT!r}; tokenize the images again")
        return cls._from(values, where)

    @classmethod
    def _from(cls, values: dict, path: str | Path) -> "TokenManifest":
        lists = {"shards": TokenShard, "skipped": Skipped, "merged": Source}
        try:
            rest = {f.name: values[f.name] for f in fields(cls) if f.name in values or f.name in REQUIRED}
            rest |= {name: [kind(**item) for item in rest[name]] for name, kind in lists.items() if name in rest}
            manifest = cls(**{**rest, "grid": tuple(values["grid"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); tokenize the images again") from None
        if values.get("rows") != manifest.rows:
            raise UserError(f"{path} says {values.get('rows')} rows, its shards add up to {manifest.rows}")
        return manifest
