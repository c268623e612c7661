"""Weights from elsewhere as a run directory, so that every command can use them."""

from pathlib import Path
from typing import Any

from torch import nn

from aim_lightning.checkpoint.io import load_weights, write_checkpoint
from aim_lightning.models import AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError
from aim_lightning.weights.infer_config import AIM, TOKENIZER, check_same
from aim_lightning.weights.load import aim_weights, vq_weights
from aim_lightning.weights.source import Source


def write_run(source: Source, directory: RunDirectory, configuration: dict[str, Any], lightning: str) -> Path:
    """Write the source's AiM or tokenizer, whichever the configuration trains, as the run's checkpoint of step 0.

    Args:
        source: what was read.
        directory: of the run; must hold no checkpoint.
        configuration: the composed document that names this run.
        lightning: version of Lightning that the checkpoint is to be read with.

    Returns:
        the checkpoint file.

    Raises:
        UserError: the run exists, or the weights are of another network than the configuration's.
    """
    if directory.checkpoints():
        raise UserError(f"{directory.path} already holds a run; give another --run, or remove it first")
    network = _network(source, configuration)
    content = {
        "network": network.state_dict(),
        "ema": None,
        "optimizers": [],
        "schedulers": [],
        "cursor": {"epoch": 0, "batch": 0},
        "data": None,
        "random_state": [],
        "configuration": configuration,
        "class_names": source.class_names,
        "tokenizer_hash": source.tokenizer_hash,
        "trainer": _progress(source, lightning),
    }
    path = directory.checkpoint_directory / "step=00000000.ckpt"
    write_checkpoint(content, path)
    return path


def _progress(source: Source, lightning: str) -> dict[str, Any]:
    """What Lightning asks of a checkpoint that nothing was trained for."""
    return {
        "imported_from": source.name,
        "pytorch-lightning_version": lightning,
        "epoch": 0,
        "global_step": 0,
        "callbacks": {},
        "weight_groups": ["network"],
    }


def _network(source: Source, configuration: dict[str, Any]) -> nn.Module:
    """The configuration's network with the source's weights."""
    model = configuration["model"]
    options = model["init_args"].get("network") or {}
    if model["class_path"] == AIM:
        config = AiMConfig(**options)
        check_same(source, config)
        network, weights = AiM(config), aim_weights(source)
    elif model["class_path"] == TOKENIZER:
        config = VQConfig(**options)
        check_same(source, config)
        network, weights = VQModel(config), vq_weights(source, config)
    else:
        raise UserError(f"model.class_path is {model['class_path']}; weights can be imported for {AIM} and {TOKENIZER}")
    load_weights(network, weights, source.name)
    return network
