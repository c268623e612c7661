"""Range checks that the configurations of all networks share."""

from typing import Any

from aim_lightning.utils.errors import UserError


def check_whole_numbers(config: Any, least: dict[str, int]) -> None:
    """Check that every named field is an int and not below its bound.

    Raises:
        UserError: the first field that fails.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if not is_whole_number(value) or value < bound:
            field = f"{type(config).__name__}.{name}"
            raise UserError(f"{field} is {value!r}; it must be a whole number, at least {bound}")


def check_dropouts(config: Any, *names: str) -> None:
    """Check that every named field is a number in [0, 1).

    Raises:
        UserError: the first field that fails.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{type(config).__name__}.{name} is {value!r}; it must be a number in [0, 1)")


def is_whole_number(value: Any) -> bool:
    """Return True for an int; bool is a subclass of int and does not count."""
    return isinstance(value, int) and not isinstance(value, bool)
