"""Convert between Lightning's checkpoint dictionary and the file format of `checkpoint.format`."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import CheckpointIO

from aim_lightning.callbacks.training.ema import EMA
from aim_lightning.checkpoint.io import read_checkpoint, write_checkpoint

# key in the file -> Lightning's key
RENAMED = {"optimizers": "optimizer_states", "schedulers": "lr_schedulers"}
EXTRA = ("cursor", "data", "random_state", "configuration", "class_names", "tokenizer_hash")  # not Lightning's
EMA_STATE = EMA.__qualname__


class RunCheckpointIO(CheckpointIO):
    """Trainer plugin for checkpoints with explicit keys and plain types, written atomically and read without code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any | None = None) -> None:
        write_checkpoint(to_file(checkpoint), path)

    def load_checkpoint(self, path, map_location: Any | None = None, weights_only: bool | None = None) -> dict:
        return from_file(read_checkpoint(path))

    def remove_checkpoint(self, path) -> None:
        Path(path).unlink(missing_ok=True)


def to_file(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert Lightning's dictionary to the content of a file, with weights grouped by the module's attribute."""
    rest = dict(checkpoint)
    content: dict[str, Any] = {}
    for name, value in rest.pop("state_dict").items():
        group, _, inner = name.partition(".")
        content.setdefault(group, {})[inner] = value
    rest["weight_groups"] = list(content)
    for key, lightning_key in RENAMED.items():
        content[key] = rest.pop(lightning_key)
    for key in EXTRA:
        content[key] = rest.pop(key)
    rest["callbacks"] = dict(rest["callbacks"])
    content["ema"] = rest["callbacks"].pop(EMA_STATE, None)
    return {**content, "trainer": rest}


def from_file(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a file to Lightning's dictionary, the inverse of `to_file`."""
    checkpoint = dict(content["trainer"])
    groups = checkpoint.pop("weight_groups")
    checkpoint["state_dict"] = {f"{g}.{name}": value for g in groups for name, value in content[g].items()}
    for key, lightning_key in RENAMED.items():
        checkpoint[lightning_key] = content[key]
    for key in EXTRA:
        checkpoint[key] = content[key]
    checkpoint["callbacks"] = dict(checkpoint["callbacks"])
    if content["ema"] is not None:
        checkpoint["callbacks"][EMA_STATE] = content["ema"]
    return checkpoint
