"""Checks of sizes and shares that every network's configuration has."""

from typing import Any

from aim_lightning.utils.errors import UserError


def check_whole_numbers(config: Any, least: dict[str, int]) -> None:
    """Every named field must be an int, and not below its bound.

    Raises:
        UserError: the first one that is not.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if not is_whole_number(value) or value < bound:
            raise UserError(f"{_field(config, name)} is {value!r}; it must be a whole number, at least {bound}")


def check_dropouts(config: Any, names: tuple[str, ...]) -> None:
    """Every named field must be a number in [0, 1).

    Raises:
        UserError: the first one that is not.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{_field(config, name)} is {value!r}; it must be a number in [0, 1)")


def is_whole_number(value: Any) -> bool:
    """Whether it is an int; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _field(config: Any, name: str) -> str:
    return f"{type(config).__name__}.{name}"
