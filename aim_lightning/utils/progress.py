"""How far a long loop is; whoever starts it decides how that is shown."""

from collections.abc import Callable, Iterable, Sequence

# (items, what is done with them) to the same items: rich's `track`, or nothing to see.
Watch = Callable[[Sequence, str], Iterable]


def unwatched(items: Sequence, what: str) -> Iterable:
    """The `Watch` that shows nothing."""
    return items
