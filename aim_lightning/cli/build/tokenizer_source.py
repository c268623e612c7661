"""What `--tokenizer SOURCE` means to a command that takes no configuration."""

from pathlib import Path
from typing import Any

from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.config import Config, read
from aim_lightning.cli.sections import SECTIONS
from aim_lightning.config.check import check
from aim_lightning.utils.errors import UserError


def tokenizer_source(text: str) -> str | dict[str, Any]:
    """A source of weights as it stands, or what the key `tokenizer` of a YAML file says.

    Raises:
        UserError: a file without that key, or one whose class is not there.
    """
    if Path(text).suffix not in (".yaml", ".yml"):
        return text
    document = read(Arguments([Path(text)]))
    value = document.values["tokenizer"]
    if value is None:
        raise UserError(f"--tokenizer: {text} does not set the key tokenizer")
    check(Config({"tokenizer": value}, document.origins), {"tokenizer": SECTIONS["tokenizer"]})
    return value
