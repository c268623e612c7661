"""The reference cache: statistics of reference images, computed once and kept in one file per identity."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aim_lightning.utils.files import atomic_path

CACHE = ".cache/reference"


class ReferenceCache:
    """One file of a cache directory, named after everything that its tensors depend on.

    Args:
        directory: created when missing.
        name: first part of the file name, the feature network.
        made_from: plain values; other values give another file.
    """

    def __init__(self, directory: str | Path, name: str, made_from: Any) -> None:
        self.made_from = json.dumps(made_from, sort_keys=True)
        self.key = hashlib.sha256(self.made_from.encode()).hexdigest()
        self.path = Path(directory) / f"{name}-{self.key[:16]}.safetensors"

    def read(self) -> dict[str, Tensor] | None:
        """Return the tensors on the CPU, or None where the file is missing or damaged."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # safetensors checks the length only, so the content has a hash of its own.
            if (metadata.get("key"), metadata.get("sha256")) == (self.key, _hash(tensors)):
                return tensors
            reason = "its content is not what was written"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        warnings.warn(f"reference statistics {self.path} are damaged ({reason}); computing them again", stacklevel=3)
        return None

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Write CPU tensors atomically."""
        metadata = {"key": self.key, "sha256": _hash(tensors), "made_from": self.made_from}
        with atomic_path(self.path) as temporary:
            save_file(tensors, temporary, metadata)


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)};".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
