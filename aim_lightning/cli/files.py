"""Files that a command cannot do without, looked for before torch is imported."""

from pathlib import Path
from typing import Any

from aim_lightning.data.tokens.manifest import TokenManifest
from aim_lightning.runs.directory import RunDirectory, newest_checkpoint
from aim_lightning.utils.errors import UserError


def check_files(command: str, values: dict[str, Any]) -> None:
    """Raises UserError for a missing run, tokenizer, folder of pictures or of token shards."""
    run = RunDirectory(values["experiment"], values["run"], values["runs_root"])
    if command in ("validate", "sample"):
        newest_checkpoint(run.path)
    if command == "tokenize":
        newest_checkpoint(values["tokenizer"] or run.path)
    if command in ("fit", "validate"):
        _check_data(values)


def _check_data(values: dict[str, Any]) -> None:
    data = values["data"].get("init_args") or {}
    if values["data"]["class_path"].endswith(".TokenDataModule"):
        for split in ("train", "val"):
            TokenManifest.load(Path(data["path"]) / split)
    for split in ("train", "val"):
        folder = (data.get("pictures") or {}).get(split)
        if folder and not Path(folder).is_dir():
            raise UserError(f"pictures.{split} {folder} does not exist; data/README.md shows how to lay it out")
    if values["tokenizer"]:
        newest_checkpoint(values["tokenizer"])
