"""Shapes of weights, asked for by name, so that a configuration can be read off them."""

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from aim_lightning.utils.errors import UserError


class Shapes:
    """Shapes of one network's weights.

    Args:
        weights: names as in our networks.
        what: the network, for messages.
        source: where the weights are from, for messages.
    """

    def __init__(self, weights: Mapping[str, Tensor], what: str, source: str) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in weights.items()}
        self.what, self.source = what, source

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def get(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Shape of one weight.

        Raises:
            UserError: it is not there, or has another number of dimensions.
        """
        return self._checked(self.shapes.get(name), name, dimensions)

    def usual(self, pattern: str, dimensions: int) -> tuple[int, ...]:
        """The most frequent shape among names that match, so that one misshapen layer misleads nobody.

        Raises:
            UserError: no such name, or another number of dimensions.
        """
        counts = Counter(self.shapes[name] for name in self.matching(pattern))
        return self._checked(max(counts, key=counts.get, default=None), pattern.replace("\\", ""), dimensions)

    def matching(self, pattern: str) -> list[str]:
        """Names that match a regular expression as a whole."""
        return [name for name in self.shapes if re.fullmatch(pattern, name)]

    def count(self, pattern: str) -> int:
        """One more than the largest number that the pattern's group catches; 0 where nothing matches."""
        numbers = (re.match(pattern, name) for name in self.shapes)
        return max((int(match[1]) + 1 for match in numbers if match), default=0)

    def ratio(self, whole: int, part: int, what: str) -> int:
        """whole / part.

        Raises:
            UserError: it does not divide.
        """
        if part < 1 or whole < 1 or whole % part:
            raise UserError(f"{self.source}: no {self.what} has these shapes: {what} would be {whole} / {part}")
        return whole // part

    def _checked(self, shape: tuple[int, ...] | None, name: str, dimensions: int) -> tuple[int, ...]:
        if shape is None:
            raise UserError(f"{self.source} holds no whole {self.what}: missing: {name}")
        if len(shape) != dimensions:
            raise UserError(f"{self.source}: {name} has shape {shape}; {self.what} has {dimensions} dimensions there")
        return shape
