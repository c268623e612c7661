"""Reads a run directory for the decision of `decide`."""

from pathlib import Path
from typing import Any

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.checkpoint.torch_load import UnreadableFile
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.resume_policy import Progress, RunContent
from aim_lightning.utils.process import beat


def read_content(directory: RunDirectory, now: dict[str, Any], verify: bool = True) -> RunContent:
    """The newest checkpoint that is whole, and what lies in the way; without `verify` checksums are not compared.

    Raises:
        TransientError: one of them cannot be read now, so that nobody knows whether it is whole.
    """
    damaged: dict[Path, str] = {}
    for path in directory.checkpoints():
        beat(f"reading {path.name}")
        try:
            content = read_checkpoint(path, verify)
        except UnreadableFile as error:
            damaged[path] = str(error)
            continue
        trainer = content["trainer"]
        progress = Progress(path, trainer["global_step"], content["cursor"]["epoch"])
        imported = trainer.get("imported_from")
        return RunContent(progress, damaged, content["configuration"], now, imported, content.get("data"))
    return RunContent(None, damaged, {}, now)
