"""Checks of constructor arguments against their annotations and ranges."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Range:
    """Interval of finite numbers.

    Args:
        low: smallest number.
        high: largest number.
        above: True if `low` itself is excluded.
        below: True if `high` itself is excluded.
        excluded: a number in the interval that is not allowed.
        note: text after the interval in errors.
    """

    low: float = 0
    high: float = math.inf
    above: bool = False
    below: bool = False
    excluded: float | None = None
    note: str = ""

    def contains(self, value: float) -> bool:
        """Return True for a number in the interval; NaN and infinity are in none."""
        bounds = (self.above and value == self.low) or (self.below and value == self.high) or value == math.inf
        return self.low <= value <= self.high and not bounds and value != self.excluded

    def __str__(self) -> str:
        if self.high == math.inf:
            words = f"above {self.low}" if self.above else f"{self.low} or more"
        elif self.above:
            words = f"above {self.low} and {'below' if self.below else 'at most'} {self.high}"
        else:
            words = f"from {self.low} to {'below ' if self.below else ''}{self.high}"
        exception = "" if self.excluded is None else f", but not {self.excluded}"
        return words + exception + self.note


NOT_NEGATIVE = Range()


def check_arguments(
    where: str, owner: Callable, values: Mapping[str, Any], default: Range = NOT_NEGATIVE, /, **ranges: Range
) -> None:
    """Check arguments against the annotations int, float, bool, None, Literal, tuple and unions of these.

    Args:
        where: start of the error, such as "model.loss.".
        owner: dataclass or function that has the annotations; others than those listed are not checked.
        values: arguments by name.
        default: range of the numbers that `ranges` does not list.
        **ranges: ranges by name of the argument; for a tuple that of its items.

    Raises:
        UserError: the first argument of another type or out of its range.
    """
    for name, annotation in owner.__annotations__.items():
        is_valid, limits = _check(values.get(name), annotation, ranges.get(name, default))
        if name in values and not is_valid:
            raise UserError(f"{where}{name} is {values[name]!r}; it must be {limits}")


def _check(value: Any, annotation: Any, allowed: Range) -> tuple[bool, str]:
    """Return whether a value is valid, and the valid values in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        results = [_check(value, argument, allowed) for argument in arguments]
        return any(is_valid for is_valid, _ in results), ", or ".join(words for _, words in results)
    if origin is tuple:
        item, count = arguments[0], None if arguments[-1] is ... else len(arguments)
        is_valid = isinstance(value, list | tuple) and len(value) == (count or len(value)) > 0
        words = f"{f'{count} items' if count else 'one or more items'}, each {_check(None, item, allowed)[1]}"
        return is_valid and all(_check(part, item, allowed)[0] for part in value), words
    if origin is Literal:
        *names, last = arguments
        return value in arguments, f"{', '.join(names)} or {last}" if names else last
    if annotation in (int, float):
        # bool is a subclass of int.
        is_number = isinstance(value, Integral if annotation is int else Real) and not isinstance(value, bool)
        return is_number and allowed.contains(value), f"{'a whole number, ' if annotation is int else ''}{allowed}"
    if annotation is bool:
        return isinstance(value, bool), "true or false"
    return (value is None, "null") if annotation is NoneType else (True, "")
