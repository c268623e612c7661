"""Read and write checkpoint files; Lightning is not needed for either."""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aim_lightning.checkpoint.checksum import DamagedArchive, drop_from_cache, seal_archive, verify_archive
from aim_lightning.checkpoint.format import FORMAT, check_content, find_unreadable
from aim_lightning.checkpoint.torch_load import DamagedFile, read_pickle, system_fault
from aim_lightning.utils.errors import TransientError, UserError, shorten
from aim_lightning.utils.files import atomic_path


class CheckpointNotWritten(UserError):
    """A failed write of a checkpoint; earlier files are unchanged."""


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically, after reading it back and verifying its checksum.

    Args:
        content: tensors and plain values by the keys of `checkpoint.format`; `format` itself is added.
        path: final name; a crash leaves either the old file or the new one.

    Raises:
        CheckpointNotWritten: the disk is full or broken.
        UserError: a value is neither tensor nor plain, or a key of KEYS is missing.
    """
    content = {"format": FORMAT, **content}
    try:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(content, file)
            # Sealed before it is read back, so that the seal is verified too.
            seal_archive(temporary)
            # Without this the file would be compared with its copy in memory, and a bad disk would go unnoticed.
            drop_from_cache(temporary)
            verify_archive(temporary)
            # torch writes types that it refuses to read. Weights stay memory-mapped on disk, so this is fast.
            check_content(read_pickle(temporary, "checkpoint", archive=True), path)
    except (DamagedFile, pickle.PicklingError, AttributeError, TypeError) as error:
        hint = "a state must hold tensors and plain values only, so convert it with float(x) or str(path)"
        fault = find_unreadable(content) or error
        raise UserError(f"checkpoint {path} could not be read again: {fault}; {hint}") from error
    except (OSError, MemoryError, RuntimeError, DamagedArchive, TransientError) as error:
        if reason := _disk_error(error):
            fault = f"checkpoint {path} could not be written ({reason}, {_free(path)} free)"
            raise CheckpointNotWritten(fault) from error
        raise


def _disk_error(error: BaseException | None) -> str | None:
    """Return the system's message behind a failed write, None for any other error."""
    # torch and the context managers wrap the system's error, so the chain of causes is searched.
    while error is not None:
        if isinstance(error, DamagedArchive):
            return f"read back, it was damaged: {error}"
        if reason := system_fault(error):
            return reason
        error = error.__cause__ or error.__context__
    return None


def _free(path: str | Path) -> str:
    try:
        return f"{shutil.disk_usage(Path(path).parent).free / 2**20:,.0f} MiB"
    except OSError:
        return "unknown space"


def read_checkpoint(path: str | Path, verify: bool = True) -> dict[str, Any]:
    """Read and check a checkpoint, with tensors on the CPU and without running code from the file.

    Args:
        path: of the file.
        verify: compare checksums, which reads the whole file.

    Raises:
        UnreadableFile: missing, not written by this project, or of another version of the format.
        DamagedFile: a checksum differs, or archive or pickle are broken.
        TransientError: the system cannot read it now.
    """
    content = read_pickle(path, "checkpoint", archive=True, verify=verify)
    check_content(content, path)
    return content


def load_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Load weights strictly, with one message for everything that does not fit.

    Raises:
        UserError: missing, surplus or misshapen names, or integers where the network has floating-point weights.
    """
    if parts := incompatible(network, weights):
        raise UserError(f"{source} does not fit this {type(network).__name__}: " + "; ".join(parts))
    # Strict: `incompatible` has listed every difference in one message before.
    network.load_state_dict(weights)


def incompatible(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], limit: int | None = 20) -> list[str]:
    """List missing, surplus, misshapen and integer weights, one line per category; empty where all fit.

    Floating-point types may differ. Integers may not: quantised weights need their scale.

    Args:
        network: that would load them.
        weights: by name.
        limit: names per line; None = all.
    """
    expected = network.state_dict()
    faults = {"missing": sorted(expected.keys() - weights.keys()), "surplus": sorted(weights.keys() - expected.keys())}
    faults |= {"other shape": [], "other type": []}
    for name in sorted(expected.keys() & weights.keys()):
        old, new = expected[name], weights[name]
        if new.shape != old.shape:
            faults["other shape"].append(f"{name} {tuple(new.shape)} for {tuple(old.shape)}")
        if old.is_floating_point() and not new.is_floating_point():
            faults["other type"].append(f"{name} {new.dtype} for {old.dtype}")
    return [f"{category}: {shorten(names, limit)}" for category, names in faults.items() if names]
