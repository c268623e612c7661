"""Format of a checkpoint file: keys, version, and the types that can be read without running code.

Keys: format; network, and any other trained network by its attribute name (discriminator); ema; optimizers;
schedulers; cursor; data (rows and fingerprint of the training set, steps, micro-batch); random_state (a list by rank);
configuration; class_names; tokenizer_hash; trainer (progress of Lightning's loops, loss scaler, metrics by rank,
states of callbacks, and under rounding: versions, device, hash of the kernels' tiles). Weights have the names of the
unwrapped modules.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aim_lightning.checkpoint.torch_load import UnreadableFile

FAMILY = "aim_lightning.checkpoint/"
FORMAT = f"{FAMILY}1"
KEYS = ("network", "ema", "optimizers", "schedulers", "cursor", "data", "random_state", "configuration", "trainer")
CONTAINERS = (dict, OrderedDict, list, tuple)
LEAVES = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, bytes, type(None))  # always readable


def is_checkpoint(content: Any) -> bool:
    """Return True for the content of a checkpoint of this project, in any version of the format."""
    return isinstance(content, Mapping) and str(content.get("format")).startswith(FAMILY)


def check_content(content: Any, source: str | Path) -> None:
    """Check that this is the complete content of a checkpoint in the current format.

    Raises:
        UnreadableFile: another program or version wrote it, or keys are missing.
    """
    if not is_checkpoint(content):
        raise UnreadableFile(f"checkpoint {source} was not written by this project (format {FORMAT!r} expected)")
    if content["format"] != FORMAT:
        versions = f"has format {content['format']!r}, this version reads {FORMAT!r}"
        raise UnreadableFile(f"checkpoint {source} {versions}; use the version that wrote it")
    if missing := [key for key in KEYS if key not in content]:
        raise UnreadableFile(f"checkpoint {source} lacks {', '.join(missing)}; use the version that wrote it")


def find_unreadable(value: Any, name: str = "") -> str | None:
    """Return dotted name and type of the first value that `torch.load` refuses, None where it reads all of them.

    Called only after reading failed: it writes and reads values one by one.
    """
    # Exact types: a subclass may need code to be read.
    if type(value) in LEAVES:
        return None
    if type(value) not in CONTAINERS:
        return None if _is_readable(value) else _describe(name, value)
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, child in pairs:
        path = f"{name}.{key}" if name else str(key)
        result = find_unreadable(child, path) if _is_readable(key) else _describe(f"the key {path}", key)
        if result:
            return result
    return None


def _is_readable(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError):
        return False
    return True


def _describe(name: str, value: Any) -> str:
    return f"{name} is a {type(value).__module__}.{type(value).__qualname__}"
