"""A pipeline with the facts that identify it in records."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.pipeline import AiMPipeline, load
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.tensor_hash import hash_tensors


@dataclass
class EvaluatedModel:
    """A pipeline that generates samples, and its origin.

    Args:
        pipeline: on its device.
        name: part of directory names, such as step=00001000-ema.
        facts: plain values for the protocol.
        raw: trained instead of averaged weights, for metric names.
    """

    pipeline: AiMPipeline
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    raw: bool = False


def from_run(source: Path, *, raw: bool, **options: Any) -> EvaluatedModel:
    """Load the newest checkpoint of a run directory, or a checkpoint file. Every rank must call it.

    Args:
        source: run directory or checkpoint.
        raw: load the trained instead of the averaged weights.
        **options: tokenizer, device, backend and allow_untrained_guidance, as in `aim_lightning.load`.

    Raises:
        UserError: no checkpoint, a checkpoint of another model, or an unavailable backend.
    """
    # Rank 0 chooses: training may write another checkpoint before the next rank looks.
    path = ProcessGroup().on_rank0(lambda: newest_checkpoint(source))
    content, pipeline = read_checkpoint(path), load(path, raw=raw, **options)
    weights = "ema" if content["ema"] and not raw else "raw"
    step, values = content["trainer"]["global_step"], content["configuration"]
    facts = {
        "kind": "run",
        "experiment": values.get("experiment"),
        "run": values.get("run"),
        "checkpoint": path.name,
        "step": step,
        "weights": weights,
        "trained_on": Path((values.get("data") or {}).get("init_args", {}).get("path", "")).name,
    }
    return EvaluatedModel(pipeline, f"step={step:08d}-{weights}", facts | identity(pipeline), raw=weights == "raw")


def from_published(source: str, **options: Any) -> EvaluatedModel:
    """Load weights in the published layout: a directory, a file, or a repository of the hub.

    Args:
        source: as in `AiMPipeline.from_pretrained`.
        **options: device, backend and allow_untrained_guidance of the same function.

    Raises:
        UserError: missing or damaged weights, or an unavailable backend.
    """
    pipeline = AiMPipeline.from_pretrained(source, **options)
    name = source.rstrip("/").split("/")[-1]
    return EvaluatedModel(pipeline, name, {"kind": "published", "name": name} | identity(pipeline))


def identity(pipeline: AiMPipeline) -> dict[str, Any]:
    """Return weights hashes, size, dtype, backend and device type: each of them may change single codes.

    The dtype of sampling is part of the sampling options (`AiMPipeline.resolve`).
    """
    weights = next(pipeline.aim.parameters())
    return {
        "weights_sha256": hash_tensors(pipeline.aim.state_dict()),
        "tokenizer": pipeline.tokenizer.weights_hash,
        "parameters": sum(parameter.numel() for parameter in pipeline.aim.parameters()),
        "weights_dtype": str(weights.dtype).removeprefix("torch."),
        "backend": pipeline.aim.backend,
        "device": weights.device.type,
    }
