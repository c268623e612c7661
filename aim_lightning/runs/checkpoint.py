"""The checkpoint file: explicit keys, plain types, nothing of Lightning's needed to read it.

Keys: format; network, and any other trained network by its attribute name (discriminator); ema; optimizers;
schedulers; cursor; random_state (a list by rank); configuration; class_names; tokenizer_hash; trainer (progress of
Lightning's loops and the callbacks' own states). Names of weights are those of the unwrapped modules.
"""

import pickle
from pathlib import Path
from typing import Any

import torch

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import atomic_path

FORMAT = "aim_lightning.checkpoint/1"
KEYS = ("network", "ema", "optimizers", "schedulers", "cursor", "random_state", "configuration", "trainer")


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write atomically: a crash leaves the file before or the whole new one."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **content}, temporary)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read and check a checkpoint onto the CPU; no code in it is run.

    Raises:
        UserError: missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"checkpoint {path} is damaged or no checkpoint ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"checkpoint {path} was not written by this project (format {FORMAT!r} expected)")
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise UserError(f"checkpoint {path} lacks {', '.join(missing)}: it is damaged")
    return content


def load_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Strict loading with one message for everything that does not fit.

    Raises:
        UserError: missing, surplus or misshapen names.
    """
    own = network.state_dict()
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if weights[name].shape != own[name].shape
    ]
    faults = {"missing": missing, "surplus": surplus, "other shape": shapes}
    parts = [f"{kind}: {_some(names)}" for kind, names in faults.items() if names]
    if parts:
        raise UserError(f"{source} does not fit this {type(network).__name__}: " + "; ".join(parts))
    network.load_state_dict(weights)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
