"""Reads a run directory for the decision of `decide`."""

from typing import Any

from aim_lightning.runs.checkpoint import read_checkpoint
from aim_lightning.runs.decide import Progress, RunContent
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError


def read_content(directory: RunDirectory, now: dict[str, Any]) -> RunContent:
    """The newest checkpoint that can be read, and what lies in the way."""
    damaged = []
    for path in directory.checkpoints():
        try:
            content = read_checkpoint(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        trainer = content["trainer"]
        progress = Progress(path, trainer["global_step"], content["cursor"]["epoch"])
        imported = trainer.get("imported_from")
        return RunContent(progress, damaged, content["configuration"], now, imported, content.get("data"))
    return RunContent(None, damaged, {}, now)
