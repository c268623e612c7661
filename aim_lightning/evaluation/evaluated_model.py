"""A generator with the facts that identify it."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.pipeline import AiMPipeline, load
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.utils.dist import ProcessGroup


@dataclass
class EvaluatedModel:
    """Networks that draw, and where they come from.

    Args:
        pipeline: on the device that draws.
        name: for directories, such as step=00001000-ema.
        facts: plain values for the protocol.
        raw: whether these are trained weights in place of averaged ones, for metric names.
    """

    pipeline: AiMPipeline
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    raw: bool = False


def from_run(source: Path, *, raw: bool, tokenizer: Any, device, backend: str = "auto") -> EvaluatedModel:
    """The newest checkpoint of a run directory, or a checkpoint file itself. Every process must call it.

    Args:
        source: run directory or checkpoint.
        raw: the trained weights in place of their average.
        tokenizer: None = the one that the run names.
        device: where to draw.
        backend: of the network.

    Raises:
        UserError: no checkpoint, one of another model, or a backend that cannot be had.
    """
    path = ProcessGroup().on_rank0(lambda: newest_checkpoint(source))  # training may write one between two looks
    content = read_checkpoint(path)
    pipeline = load(path, raw=raw, tokenizer=tokenizer, backend=backend).to(device)
    kind = "ema" if content["ema"] and not raw else "raw"
    step = content["trainer"]["global_step"]
    values = content["configuration"]
    facts = {
        "kind": "run",
        "experiment": values.get("experiment"),
        "run": values.get("run"),
        "checkpoint": path.name,
        "step": step,
        "weights": kind,
        "trained_on": Path((values.get("data") or {}).get("init_args", {}).get("path", "")).name,
    }
    return EvaluatedModel(pipeline, f"step={step:08d}-{kind}", facts | identity(pipeline), raw=kind == "raw")


def from_published(source: str, device, backend: str = "auto") -> EvaluatedModel:
    """Weights in the published layout: a directory, a file, or a repository of the hub.

    Raises:
        UserError: not there, damaged, or a backend that cannot be had.
    """
    pipeline = AiMPipeline.from_pretrained(source, backend=backend).to(device)
    name = source.rstrip("/").split("/")[-1]
    return EvaluatedModel(pipeline, name, {"kind": "published", "name": name} | identity(pipeline))


def identity(pipeline: AiMPipeline) -> dict[str, Any]:
    """Hashes of the weights, their number and the type that they are kept in, backend and kind of device: each may
    change single codes. The sampling options tell in which type codes are drawn (`AiMPipeline.resolve`)."""
    weights = next(pipeline.aim.parameters())
    return {
        "weights_sha256": weights_hash(pipeline.aim),
        "tokenizer": pipeline.tokenizer.weights_hash,
        "parameters": sum(parameter.numel() for parameter in pipeline.aim.parameters()),
        "weights_dtype": str(weights.dtype).removeprefix("torch."),
        "backend": pipeline.aim.backend,
        "device": weights.device.type,
    }


def weights_hash(network: nn.Module) -> str:
    """Hex sha256 over names, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
