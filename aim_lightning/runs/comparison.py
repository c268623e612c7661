"""Compare the configurations of two runs, leaf by leaf."""

from pathlib import Path
from typing import Any

# Names of the runs themselves, and their directory.
IDENTITY = ("experiment", "run", "runs_root")


def differing_leaves(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ by dotted name, with both values; None where a configuration has no such option.

    Names are those of overrides, without `init_args`. Names of runs are left out. Two absolute paths count as equal
    where their last two parts are: the same data at another mount point.

    Args:
        first: composed configuration of a run.
        second: composed configuration of another run.
    """
    one, two = leaves(first), leaves(second)
    names = sorted(name for name in one.keys() | two.keys() if name not in IDENTITY)
    pairs = {name: (one.get(name), two.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if _comparable(pair[0]) != _comparable(pair[1])}


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted name; an empty mapping has no leaf."""
    result = {}
    for key, value in values.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else key
        result |= leaves(value, name) if isinstance(value, dict) else {name: value}
    return result


def _comparable(value: Any) -> Any:
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).parts[-2:]
    # Checkpoints contain tuples where files contain lists.
    return list(value) if isinstance(value, tuple) else value
