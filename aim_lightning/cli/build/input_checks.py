"""Check the files that a command requires, before torch is imported."""

from pathlib import Path
from typing import Any

from aim_lightning.data.tokens.format.manifest import TokenManifest, is_remote
from aim_lightning.runs.directory import RunDirectory, missing_source, newest_checkpoint
from aim_lightning.utils.errors import UserError


def check_files(command: str, values: dict[str, Any], checkpoint: str | None = None) -> None:
    """Check that the run, tokenizer, weights, images and token shards of a command exist.

    Args:
        command: name of the command.
        values: of the configuration.
        checkpoint: file used instead of the newest checkpoint of the run.

    Raises:
        UserError: a file or directory is missing.
    """
    run = RunDirectory(values["experiment"], values["run"], values["runs_root"])
    if checkpoint and not Path(checkpoint).exists():
        raise UserError(f"--checkpoint {checkpoint} does not exist")
    if command in ("validate", "sample", "app", "evaluate", "sweep") and not checkpoint:
        newest_checkpoint(run.path)
    if command == "follow" and not run.path.is_dir():  # without a checkpoint yet it waits for one
        train = f"make train EXP={run.experiment} RUN={run.run}"
        raise UserError(f"{run.path} does not exist; start its training first ({train}), or correct --run")
    if command == "tokenize":
        _check_tokenizer(values["tokenizer"] or run.path, run.root)
    if command in ("fit", "validate"):
        _check_data(values)
        _check_weights(command, values, run)


def _check_data(values: dict[str, Any]) -> None:
    data = values["data"].get("init_args") or {}
    reads_shards = values["data"]["class_path"].endswith(".TokenDataModule") and not is_remote(data["path"])
    for split in ("train", "val"):
        if reads_shards:
            TokenManifest.load(Path(data["path"]) / split)
        directory = (data.get("images") or {}).get(split)
        # Braces are a pattern of shards, which `open_source` expands.
        if directory and "{" not in directory and not Path(directory).exists():
            raise UserError(f"images.{split} {directory} does not exist; data/README.md shows how to lay it out")
    if values["tokenizer"]:
        _check_tokenizer(values["tokenizer"], values["runs_root"])


def _check_tokenizer(source: str | Path | dict[str, Any], runs_root: str | Path) -> None:
    if isinstance(source, dict):  # a class of the user
        return
    path = Path(source)
    if (path / "config.json").is_file():  # a Hugging Face directory
        return
    if path.absolute().is_relative_to(Path(runs_root).absolute()):
        newest_checkpoint(path)  # its error names the command that trains it
    elif not path.exists():
        raise UserError(missing_source(path))


def _check_weights(command: str, values: dict[str, Any], run: RunDirectory) -> None:
    """Check the weights of LPIPS and of `init_from`."""
    model = values["model"].get("init_args") or {}
    loss, source = model.get("loss") or {}, model.get("init_from")
    used = loss.get("perceptual_file") if loss.get("perceptual_weight") else None
    for name, file, without in (
        ("model.lpips_file", model.get("lpips_file"), "--model.lpips_file null"),
        ("model.loss.perceptual_file", used, "--model.loss.perceptual_weight 0"),
    ):
        if file and not Path(file).is_file():
            raise UserError(
                f"{name} {file} does not exist; save https://download.pytorch.org/models/"
                f"vgg16-397923af.pth there, or go without LPIPS: {without}"
            )
    if command == "fit" and source and not run.checkpoints() and not Path(source).exists():
        raise UserError(f"model.init_from {missing_source(source)}")
