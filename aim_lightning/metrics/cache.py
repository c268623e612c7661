"""Tensors that are computed once and kept in a file named after everything they were made from."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aim_lightning.utils.files import atomic_path


class TensorCache:
    """One entry of a cache directory.

    Args:
        directory: made when missing.
        name: start of the file's name.
        made_from: plain values; other values give another file.
    """

    def __init__(self, directory: str | Path, name: str, made_from: Any) -> None:
        self.made_from = json.dumps(made_from, sort_keys=True)
        self.key = hashlib.sha256(self.made_from.encode()).hexdigest()
        self.path = Path(directory) / f"{name}-{self.key[:16]}.safetensors"

    @staticmethod
    def has_any(directory: str | Path, name: str) -> bool:
        """Whether the directory has an entry of this name, made from whatever."""
        return any(Path(directory).glob(f"{name}-*.safetensors"))

    def read(self) -> dict[str, Tensor] | None:
        """The tensors on the CPU; None when the file is missing or damaged."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # The hash, because safetensors checks the length alone.
            if (metadata.get("key"), metadata.get("sha256")) == (self.key, _tensors_hash(tensors)):
                return tensors
            reason = "its content is not what was written"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        warnings.warn(f"reference statistics {self.path} are damaged ({reason}); computing them again", stacklevel=3)
        return None

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Write atomically; tensors must be on the CPU."""
        metadata = {"key": self.key, "sha256": _tensors_hash(tensors), "made_from": self.made_from}
        with atomic_path(self.path) as temporary:
            save_file(tensors, temporary, metadata)


def _tensors_hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)};".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
