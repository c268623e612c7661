"""manifest.json of a folder of token shards: what is in them, and what wrote them."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, write_json

FORMAT = "aim_lightning.tokens/1"
LARGEST_CODEBOOK = 65536  # codes are stored as uint16


@dataclass(frozen=True)
class TokenShard:
    """One tar file: its name in the folder, rows (pictures) in it and the sha256 of its bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class TokenManifest:
    """Everything a reader must know before it opens a shard.

    Args:
        grid: codes a picture, (rows, columns).
        codebook_size: codes run from 0 to codebook_size - 1.
        class_names: by label.
        views: stored versions of each picture (1 = center crop, 2 = with its mirror image).
        tokenizer_hash: weights_hash of the tokenizer that wrote the codes.
        source: fingerprint of the pictures.
        shards: in dataset order: row r of the set is row r of the shards read one after the other.
    """

    grid: tuple[int, int]
    codebook_size: int
    class_names: list[str]
    views: int
    tokenizer_hash: str
    source: str
    shards: list[TokenShard] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Pictures in the set."""
        return sum(shard.rows for shard in self.shards)

    @property
    def num_tokens(self) -> int:
        """Codes a picture."""
        return self.grid[0] * self.grid[1]

    def save(self, folder: Path) -> None:
        """Write manifest.json atomically; its presence says that the folder is complete."""
        write_json(folder / "manifest.json", {"format": FORMAT, "rows": self.rows, **asdict(self)})

    @classmethod
    def load(cls, folder: str | Path) -> "TokenManifest":
        """Read and check manifest.json.

        Raises:
            UserError: missing, of another format, or inconsistent.
        """
        path = Path(folder) / "manifest.json"
        if not path.exists():
            raise UserError(
                f"{path} does not exist: {folder} is no finished folder of token shards; make it with "
                "`make tokenize EXP=…` or set data.path"
            )
        values = read_json(path, "token manifest")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise UserError(f"{path} has format {found!r}, expected {FORMAT!r}; tokenize the pictures again")
        return cls._from(values, path)

    @classmethod
    def _from(cls, values: dict, path: Path) -> "TokenManifest":
        try:
            shards = [TokenShard(**shard) for shard in values["shards"]]
            rest = {name: values[name] for name in cls.__dataclass_fields__ if name not in ("grid", "shards")}
            manifest = cls(grid=tuple(values["grid"]), shards=shards, **rest)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); tokenize the pictures again") from None
        if values.get("rows") != manifest.rows:
            raise UserError(f"{path} says {values.get('rows')} rows, its shards add up to {manifest.rows}")
        return manifest
