"""Small networks and checkpoints for the tests of weights."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from helpers import TINY, TINY_VQ, random_aim

from aim_lightning.checkpoint.format import KEYS
from aim_lightning.checkpoint.io import write_checkpoint
from aim_lightning.models import AiM, AiMConfig, VQConfig, VQModel
from aim_lightning.weights.infer_config import AIM, TOKENIZER

SMALL_VQ = replace(TINY_VQ, image_size=4)  # a 2x2 grid, as TINY has 4 codes


def aim(config: AiMConfig = TINY, seed: int = 0) -> AiM:
    """Return an AiM whose parameters are all random, also those initialised to zero or one."""
    return random_aim(config, 0.2, seed, vectors=True)


def vq(config: VQConfig = SMALL_VQ, seed: int = 1) -> VQModel:
    torch.manual_seed(seed)
    model = VQModel(config).eval()
    model.quantize.codebook_used.random_(0, config.codebook_size)
    return model


def published(model: AiM, tokenizer: VQModel | None = None, head: bool = True) -> dict[str, torch.Tensor]:
    """Return weights under the published prefixes, with or without the tied head."""
    weights = {f"mamba.{name}": value for name, value in model.state_dict().items() if head or name != "lm_head.weight"}
    return weights | {f"vqvae.{name}": value for name, value in (tokenizer.state_dict() if tokenizer else {}).items()}


def run_content(network: torch.nn.Module, averaged: dict | None = None, **extra) -> dict:
    """Return the content of a checkpoint of this project."""
    aim_run = isinstance(network, AiM)
    options = asdict(network.config)
    model = {"class_path": AIM if aim_run else TOKENIZER, "init_args": {"network": options}}
    return {
        **{key: {} for key in KEYS},
        "network": network.state_dict(),
        "ema": {"steps": 3, "network": averaged} if averaged else None,
        "configuration": {"model": model, "runs_root": "runs", "tokenizer": None},
        "trainer": {"global_step": 1},
        "cursor": {"epoch": 0, "batch": 0},
        **extra,
    }


def write_run(directory: Path, network: torch.nn.Module, averaged: dict | None = None, **extra) -> Path:
    """Write a run directory with one checkpoint and return it."""
    write_checkpoint(run_content(network, averaged, **extra), directory / "checkpoints" / "step=00000001.ckpt")
    return directory


def same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Return True for equal names, types and bits."""
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
