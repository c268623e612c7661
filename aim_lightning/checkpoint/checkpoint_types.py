"""Which part of a checkpoint's content could not be read again without running code."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

CONTAINERS = (dict, OrderedDict, list, tuple)
LEAVES = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, bytes, type(None))  # always readable


def find_foreign(value: Any, name: str = "") -> str | None:
    """Dotted name and type of the first thing that is neither tensor nor plain value; None when there is none.

    Only called when reading has failed: parts are written and read one by one.
    """
    if type(value) in LEAVES:
        return None
    if type(value) not in CONTAINERS:
        return None if _readable(value) else _line(name, value)
    pairs = list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))
    for key, child in pairs:
        inside = f"{name}.{key}" if name else str(key)
        found = _line(f"the key {inside}", key) if not _readable(key) else find_foreign(child, inside)
        if found:
            return found
    return None


def _readable(value: Any) -> bool:
    try:
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError):
        return False
    return True


def _line(name: str, value: Any) -> str:
    kind = type(value)
    return f"{name} is a {kind.__module__}.{kind.__qualname__}"
