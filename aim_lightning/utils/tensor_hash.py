"""Hash of named tensors, for records that identify weights and statistics."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def hash_tensors(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the hex sha256 over a text, then the names, dtypes, shapes and values of tensors."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        # numpy has no bfloat16: the bytes are hashed through a view.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
