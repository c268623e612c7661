"""Range checks that the configurations of all networks share."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from aim_lightning.utils.errors import UserError


def check_ranges(config: Any, may_be_zero: Collection[str] = ()) -> None:
    """Check every int field (whole numbers from 1) and float field (dropouts, numbers in [0, 1)).

    Args:
        config: a dataclass.
        may_be_zero: int fields that may be 0.

    Raises:
        UserError: the first field that fails.
    """
    for field in fields(config):
        name, value = f"{type(config).__name__}.{field.name}", getattr(config, field.name)
        least = 0 if field.name in may_be_zero else 1
        if field.type is int and not (is_whole_number(value) and value >= least):
            raise UserError(f"{name} is {value!r}; it must be a whole number, at least {least}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if field.type is float and not (number and 0 <= value < 1):
            raise UserError(f"{name} is {value!r}; it must be a number in [0, 1)")


def is_whole_number(value: Any) -> bool:
    """Return True for an int; bool is a subclass of int and does not count."""
    return isinstance(value, int) and not isinstance(value, bool)
