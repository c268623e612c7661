"""manifest.json of a directory of token shards, and the location of such a directory.

This module must stay cheap to import: input checks run before torch is imported.
"""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import require_regular, write_json
from aim_lightning.utils.ranges import Range, check_arguments

FORMAT = "aim_lightning.tokens/1"
MANIFEST = "manifest.json"
LARGEST_CODEBOOK = 65536  # codes are stored as uint16
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")  # at least two letters: C: is a Windows drive


def is_remote(path: str) -> bool:
    """Return True for a URL such as `http://HOST/DIRECTORY` or `pipe:COMMAND`, False for a path.

    Args:
        path: `data.path`, or the path or URL of a file.
    """
    return SCHEME.match(path) is not None


def file_url(path: str, split: str, name: str) -> str:
    """Return the path or URL of a file in a split.

    Args:
        path: `data.path`. ``{}`` is replaced by the file name, such as train/manifest.json. Without ``{}`` the file
            name is appended after a slash: `pipe:ssh host cat /tokens` equals `pipe:ssh host cat /tokens/{}`.
        split: ``train`` or ``val``.
        name: file name below the split.
    """
    file = f"{split}/{name}"
    return path.replace("{}", file) if "{}" in path else f"{path.rstrip('/')}/{file}"


@dataclass(frozen=True)
class TokenShard:
    """A shard's tar file: its name in the directory, its rows (images) and the sha256 of its bytes."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Skipped:
    """An image that could not be decoded: its key in the source and the reason."""

    key: str
    reason: str


@dataclass(frozen=True)
class Source:
    """Origin of consecutive shards: fingerprint of their images, encoding, and number of shards."""

    fingerprint: str
    encoding: dict
    shards: int


@dataclass(frozen=True)
class TokenManifest:
    """Description of a directory of token shards, needed to read it.

    Args:
        grid: codes per image, (rows, columns).
        codebook_size: codes lie between 0 and codebook_size - 1.
        class_names: names by label.
        views: stored versions per image (1 = center crop, 2 = with its mirror image, 10 or 20 = ten-crop).
        tokenizer_hash: weights_hash of the tokenizer that wrote the codes.
        source: fingerprint of the images.
        shards: in dataset order. Row r of the set is row r of the concatenated shards.
        encoding: views, precision, batch size and devices that wrote the codes; empty in merged directories.
        skipped: images that were left out because they could not be decoded.
        merged: sources of a merged directory in the order of the shards; empty for a single source.
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
        """Return the number of images in the set."""
        return sum(shard.rows for shard in self.shards)

    @property
    def first_rows(self) -> np.ndarray:
        """Return the dataset row of each shard's first row, followed by the total number of rows."""
        return np.cumsum([0, *(shard.rows for shard in self.shards)])

    @property
    def num_tokens(self) -> int:
        """Return the number of codes per image and view."""
        return self.grid[0] * self.grid[1]

    @property
    def sources(self) -> list[Source]:
        """Return the sources of the rows, in the order of the shards."""
        return self.merged or [Source(self.source, self.encoding, len(self.shards))]

    def save(self, directory: Path) -> None:
        """Write manifest.json atomically.

        Args:
            directory: a directory whose shards are all finished; the manifest marks it as complete.
        """
        write_json(directory / MANIFEST, {"format": FORMAT, "rows": self.rows, **asdict(self)})

    @classmethod
    def load(cls, directory: str | Path) -> "TokenManifest":
        """Read and check manifest.json.

        Args:
            directory: the directory that contains it.

        Raises:
            UserError: it is missing, has another format, or is inconsistent.
        """
        path = Path(directory) / MANIFEST
        if not path.exists():
            fact = f"{path} does not exist: {directory} is no finished directory of token shards"
            raise UserError(f"{fact}; make it with `make tokenize EXP=…` or set data.path")
        require_regular(path)
        return cls.parse(path.read_text(encoding="utf-8", errors="replace"), path)

    @classmethod
    def parse(cls, text: str, where: str | Path) -> "TokenManifest":
        """Parse and check the text of a manifest.json.

        Args:
            text: content of the file.
            where: path or URL for error messages.

        Raises:
            UserError: it has another format or is inconsistent.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f"token manifest {where} is not readable JSON ({error})") from None
        actual = values.get("format") if isinstance(values, dict) else type(values).__name__
        if actual != FORMAT:
            raise UserError(f"{where} has format {actual!r}, expected {FORMAT!r}; tokenize the images again")
        items = {"shards": TokenShard, "skipped": Skipped, "merged": Source}
        try:
            arguments = {field.name: values[field.name] for field in fields(cls)} | {"grid": tuple(values["grid"])}
            arguments |= {name: [item(**entry) for entry in arguments[name]] for name, item in items.items()}
        except (KeyError, TypeError) as error:
            raise UserError(f"{where} is damaged ({error}); tokenize the images again") from None
        check_arguments(f"{where}: ", cls, arguments, views=Range(1), codebook_size=Range(1))
        for shard in arguments["shards"]:
            check_arguments(f"{where}: shards.", TokenShard, vars(shard))
        manifest = cls(**arguments)
        if values.get("rows") != manifest.rows:
            raise UserError(f"{where} says {values.get('rows')} rows, its shards add up to {manifest.rows}")
        return manifest
