"""Weights files of frozen networks: there or not, and read without running code."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from aim_lightning.utils.errors import UserError


def existing_file(path: str | Path, mend: str) -> Path:
    """The path; raises UserError with the advice `mend` when there is no file."""
    if not Path(path).is_file():
        raise UserError(f"weights file {path} does not exist; {mend}")
    return Path(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU; raises UserError for a damaged file or something else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"weights file {path} is damaged or no file of weights ({type(error).__name__})") from None
