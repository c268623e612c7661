"""Classes with annotations of every form, also outdated and unknown ones."""

# ruff: noqa: B006, F821, RUF013, UP006, UP007, UP035, UP037, UP045
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, List, Literal, Optional, Union


@dataclass(frozen=True)
class Sizes:
    """Sizes.

    Args:
        width: how wide,
            in pixels.
        kind: which one.
    """

    table: ClassVar[dict] = {}
    width: int
    kind: Literal["none", "layer"] = "none"
    levels: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    names: list[str] = field(default_factory=lambda: ["a"])
    hidden: int = field(init=False, default=3)


@dataclasses.dataclass(frozen=True)
class Wider(Sizes):
    extra: float = 0.5
    inner: Sizes | None = None


@dataclass
class Easy:
    depth: int = 2


class Base:
    """Base of all.

    Args:
        root: where (a directory).
        workers: how many.
    """

    def __init__(self, root: Path, workers: "int" = 2, *, shuffle: bool = False, rate: float = 1e-4):
        pass


class Model(Base):
    def __init__(self, network: Sizes, easy: Easy, wide: Optional[Wider] = None, **kwargs: Any):
        """Make it.

        Args:
            network: the sizes.
        """
        super().__init__(network, shuffle=True, **kwargs)


class Free(Base):
    def __init__(self, x: int = None, **kwargs):
        self.options = kwargs


class Child(Model):
    pass


class Things:
    def __init__(
        self,
        table: dict[str, int] = {},
        many: list[Sizes] = (),
        make: Callable[[int], Base] = None,
        part: Base = None,
        either: Union[int, str, None] = 3,
        alien: Unheard = 1,
        anything=None,
        seq: Sequence[int] = (),
        scale: float | Tensor = 1.0,
        precision: _PRECISION = "32",
        owner: str = "",
        rows: List = (),
    ):
        pass


class Plain:
    pass


class Bag(dict):
    pass


class Given:
    def __init__(self, base: Base = None):
        pass


Alias = Base


def factory(x: int): ...
