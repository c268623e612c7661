"""Where token shards are: a directory, or anything that webdataset opens. Light: nothing heavy is imported here."""

import re
from dataclasses import dataclass

SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")  # two letters at least: C: is a drive
PLACE = "{}"


@dataclass(frozen=True)
class Location:
    """`data.path`: a directory, `http://HOST/DIRECTORY`, `pipe:COMMAND` and so on.

    Args:
        base: ``{}`` stands for the file wanted, such as train/manifest.json; without it the file is appended to the
            base after a slash: `pipe:ssh host cat /tokens` and `pipe:ssh host cat /tokens/{}` are the same.
    """

    base: str

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL, not a directory."""
        return SCHEME.match(self.base) is not None

    def url(self, split: str, name: str) -> str:
        """Of a file of the training set (`train`) or the validation set (`val`)."""
        inside = f"{split}/{name}"
        return self.base.replace(PLACE, inside) if PLACE in self.base else f"{self.base.rstrip('/')}/{inside}"
