"""The checkpoint file: explicit keys, plain types, nothing of Lightning's needed to read it.

Keys: format; network, and any other trained network by its attribute name (discriminator); ema; optimizers;
schedulers; cursor; data (rows and fingerprint of the training set, and steps; not in older files); random_state (a list
by rank); configuration; class_names; tokenizer_hash; trainer (progress of Lightning's loops, the loss scaler, metrics
by rank, states of callbacks). Names of weights are those of the unwrapped modules.
"""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aim_lightning.checkpoint.checkpoint_types import find_foreign
from aim_lightning.checkpoint.checksum import DamagedArchive, drop_from_cache, seal_archive, verify_archive
from aim_lightning.checkpoint.torch_load import UnreadableFile, read_pickle, system_fault
from aim_lightning.utils.errors import TransientError, UserError
from aim_lightning.utils.files import atomic_path

FORMAT = "aim_lightning.checkpoint/1"
KEYS = ("network", "ema", "optimizers", "schedulers", "cursor", "random_state", "configuration", "trainer")


class CheckpointNotWritten(UserError):
    """The disk did not take a checkpoint; earlier ones are untouched."""


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write atomically: a crash leaves the file before or the whole new one, which has been read back and checked.

    Raises:
        CheckpointNotWritten: the disk is full or broken.
        UserError: something in it is neither tensor nor plain value, or a key of KEYS is missing.
    """
    content = {"format": FORMAT, **content}
    try:
        with atomic_path(path) as temporary:
            _save(content, temporary, path)
            seal_archive(temporary)
            drop_from_cache(temporary)
            verify_archive(temporary)
            _load_again(content, temporary, path)
    except (OSError, MemoryError, RuntimeError, DamagedArchive, TransientError) as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        raise CheckpointNotWritten(f"checkpoint {path} could not be written ({reason}, {_free(path)} free)") from error


def _save(content: dict[str, Any], temporary: Path, path: str | Path) -> None:
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise _unfit(content, path, str(error)) from error


def _load_again(content: dict[str, Any], temporary: Path, path: str | Path) -> None:
    """What a later start does with the file; weights stay on disk, so that this takes no time."""
    try:
        loaded = read_pickle(temporary, "checkpoint", archive=True)
    except UnreadableFile as error:
        raise _unfit(content, path, str(error)) from error
    check_content(loaded, path)


def _unfit(content: dict[str, Any], path: str | Path, reason: str) -> UserError:
    found = find_foreign(content) or reason
    return UserError(
        f"checkpoint {path} could not be read again: {found}; a callback's or module's state may hold tensors and "
        "plain values only, so convert it there, such as float(x) or str(path)"
    )


def _disk_error(error: BaseException | None) -> str | None:
    """The system's words behind what torch makes of a failed write; None when it was something else."""
    while error is not None:
        if isinstance(error, DamagedArchive):
            return f"read back, it was damaged: {error}"
        if words := system_fault(error):
            return words
        error = error.__cause__ or error.__context__
    return None


def _free(path: str | Path) -> str:
    try:
        return f"{shutil.disk_usage(Path(path).parent).free / 2**20:,.0f} MiB"
    except OSError:
        return "nothing known to be"


def read_checkpoint(path: str | Path, verify: bool = True) -> dict[str, Any]:
    """Read and check a checkpoint onto the CPU; no code in it is run. Without `verify` checksums are not compared.

    Raises:
        UnreadableFile: missing, damaged, or not one of ours.
        TransientError: the system cannot read it now.
    """
    content = read_pickle(path, "checkpoint", archive=True, verify=verify)
    check_content(content, path)
    return content


def check_content(content: Any, source: str | Path) -> None:
    """Whether this is the whole content of a checkpoint of ours.

    Raises:
        UnreadableFile: of something else, or keys are missing.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UnreadableFile(f"checkpoint {source} was not written by this project (format {FORMAT!r} expected)")
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise UnreadableFile(f"checkpoint {source} lacks {', '.join(missing)}: it is damaged")


def load_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Strict loading with one message for everything that does not fit.

    Raises:
        UserError: missing, surplus or misshapen names, or whole numbers where the network has others.
    """
    parts = incompatible(network, weights)
    if parts:
        raise UserError(f"{source} does not fit this {type(network).__name__}: " + "; ".join(parts))
    network.load_state_dict(weights)


def incompatible(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], limit: int | None = 20) -> list[str]:
    """Missing, surplus, misshapen and non-floating names, a line a kind with at most `limit`; nothing where all fits.

    Floating types may differ; integers would be taken for numbers that they are not, such as quantised weights.
    """
    own = network.state_dict()
    both = sorted(own.keys() & weights.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in both
        if weights[name].shape != own[name].shape
    ]
    types = [
        f"{name} {weights[name].dtype} for {own[name].dtype}"
        for name in both
        if own[name].is_floating_point() and not weights[name].is_floating_point()
    ]
    faults = {
        "missing": sorted(own.keys() - weights.keys()),
        "surplus": sorted(weights.keys() - own.keys()),
        "other shape": shapes,
        "other type": types,
    }
    return [f"{kind}: {_some(names, limit)}" for kind, names in faults.items() if names]


def _some(names: list[str], limit: int | None) -> str:
    more = f" and {len(names) - limit} more" if limit is not None and len(names) > limit else ""
    return ", ".join(names[:limit]) + more
