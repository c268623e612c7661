"""Networks back from a run directory, without Lightning."""

from pathlib import Path
from typing import Any

from aim_lightning.models import AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.pipeline import AiMPipeline
from aim_lightning.runs.checkpoint import load_weights, read_checkpoint
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.utils.errors import UserError

AIM, TOKENIZER = "aim_lightning.modules.aim.AiMModule", "aim_lightning.modules.tokenizer.TokenizerModule"


def load(run_dir: str | Path, *, raw: bool = False, tokenizer: Any = None) -> AiMPipeline:
    """A trained generator for notebooks: ``load("runs/demo_aim/main").generate([0, 1, 2])``.

    Args:
        run_dir: run directory of an AiM experiment, or one of its checkpoint files.
        raw: the trained weights themselves instead of their average.
        tokenizer: use this one; by default the one that the run's configuration names.

    Raises:
        UserError: no checkpoint, one of another model, or a tokenizer that does not belong to it.
    """
    path = newest_checkpoint(run_dir)
    content = read_checkpoint(path)
    aim = AiM(AiMConfig(**_network_options(content, AIM, path)))
    load_weights(aim, _weights(content, raw), path)
    if tokenizer is None:
        tokenizer = load_tokenizer(_tokenizer_source(content["configuration"], path))
    trained_on = content.get("tokenizer_hash")
    if trained_on and tokenizer.weights_hash != trained_on:
        raise UserError(f"{path} was trained on the codes of another tokenizer (weights hash {trained_on[:12]}…)")
    return AiMPipeline(aim, tokenizer, content.get("class_names"))


def load_tokenizer(source: str | Path, *, raw: bool = False) -> VQModel:
    """The VQ tokenizer of a run directory or checkpoint file, in evaluation mode.

    Raises:
        UserError: no checkpoint, or one of another model.
    """
    path = newest_checkpoint(source)
    content = read_checkpoint(path)
    model = VQModel(VQConfig(**_network_options(content, TOKENIZER, path)))
    load_weights(model, _weights(content, raw), path)
    return model.eval().requires_grad_(False)


def _tokenizer_source(configuration: dict, path: Path) -> Path:
    """The tokenizer that the run names, from this folder or beside the run wherever that was moved to."""
    source = configuration.get("tokenizer")
    if not source:
        raise UserError(f"{path} names no tokenizer; pass tokenizer=")
    root = Path(configuration["runs_root"])
    if not Path(source).exists() and Path(source).is_relative_to(root):
        return path.resolve().parents[3] / Path(source).relative_to(root)
    return Path(source)


def _weights(content: dict, raw: bool) -> dict:
    """EMA weights where the run has them, unless the raw ones are asked for."""
    ema = content.get("ema")
    return content["network"] if raw or not ema else ema["network"]


def _network_options(content: dict, class_path: str, path: Path) -> dict:
    model = content["configuration"].get("model") or {}
    if model.get("class_path") != class_path:
        raise UserError(f"{path} is a checkpoint of {model.get('class_path')}, expected {class_path}")
    return model["init_args"]["network"]
