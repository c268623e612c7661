"""Ranges of options that libraries and constructors would accept unchecked. Imports no torch."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aim_lightning.config.compose import ComposedConfig, is_class
from aim_lightning.config.yaml import inline, read_mapping
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range


@dataclass(frozen=True)
class Share:
    """Range of an option that is a share of an epoch as a float, and a number of batches as an int.

    Args:
        low: smallest int; 0 also allows the share 0.
    """

    low: int

    def contains(self, value: float) -> bool:
        """Return True for a share or a number of batches in the range."""
        return (Range(0, 1, above=self.low > 0) if isinstance(value, float) else Range(self.low)).contains(value)

    def __str__(self) -> str:
        return f"a whole number, {self.low} or more, or a share of at most 1.0"


@dataclass(frozen=True)
class Choice:
    """Texts that an option accepts, and the reason, which follows them in errors."""

    names: list[str]
    reason: str = ""

    def contains(self, value: Any) -> bool:
        """Return True for one of the texts."""
        return value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}{self.reason}"


Allowed = Range | Share | Choice


def _allowed(names: list[str] | None = None, reason: str = "", share: int | None = None, **limits: Any) -> Allowed:
    if names:
        return Choice(names, reason)
    return Range(**limits) if share is None else Share(share)


_TABLE = read_mapping(Path(__file__).with_name("ranges.yaml"), "ranges.yaml")
TRAINER, ARGUMENTS = ({name: _allowed(**entry) for name, entry in _TABLE[key].items()} for key in _TABLE)
SECTIONS = {"trainer": TRAINER, "images": ARGUMENTS, "tokenize": ARGUMENTS}
STRATEGIES = TRAINER["strategy"].names


def check_ranges(config: ComposedConfig, sections: Iterable[str]) -> None:
    """Check every number of a configuration: finite, and within the range of its option.

    Args:
        config: its types are checked already.
        sections: names of the sections of the command.

    Raises:
        UserError: a value that is not finite or out of range, with the file that sets it.
    """
    for name in sections:
        ranges = SECTIONS.get(name, {"seed_everything": ARGUMENTS["seed"]})
        for key, allowed, value in _values(config.values.get(name), name, ranges):
            if not _is_valid(value, allowed):
                limits = allowed or "a finite number"
                raise UserError(f"{config.origin(key)}: {key} is {inline(value)}; it must be {limits}")


def _is_valid(value: Any, allowed: Allowed | None) -> bool:
    """Return True for an allowed value; null and texts such as `auto` are valid for every number."""
    if isinstance(value, str) and isinstance(allowed, Choice):
        return allowed.contains(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    is_finite = isinstance(value, int) or math.isfinite(value)  # isfinite fails for integers beyond float
    return is_finite and (allowed is None or allowed.contains(value))


def _values(value: Any, key: str, ranges: Mapping[str, Allowed]) -> Iterator[tuple[str, Allowed | None, Any]]:
    """Yield dotted key, allowed values and value of everything that is not a mapping or a list."""
    # Names of arguments have a known meaning in classes of this package only.
    if is_class(value):
        ranges = ARGUMENTS if str(value["class_path"]).startswith("aim_lightning.") else {}
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _values(item, f"{key}.{name}", ranges)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _values(item, f"{key}[{number}]", {})
    else:
        yield key, ranges.get(key.rpartition(".")[2]), value
