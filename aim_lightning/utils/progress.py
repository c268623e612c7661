"""How far a long loop is; whoever starts it decides how that is shown."""

from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

# (items, what is done with them) to the same items.
Watch = Callable[[Sequence, str], Iterable]


def unwatched(items: Sequence, what: str) -> Iterable:
    """The `Watch` that shows nothing."""
    return items


def watched(items: Sequence, what: str) -> Iterable:
    """The `Watch` that shows a bar in a terminal.

    Not rich's `track`: an exception in the loop leaves its thread behind, and the collector, which may run in another
    bar's thread, then waits for it for ever.
    """
    return tqdm(items, what, leave=False, disable=None)
