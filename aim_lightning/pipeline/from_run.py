"""Load the network and tokenizer of a run directory, without Lightning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aim_lightning.checkpoint.format import check_content
from aim_lightning.pipeline.pipeline import AiMPipeline
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.instantiate import build_object
from aim_lightning.weights import import_aim, import_vq, read_source

PROTOCOL = ("encode", "decode", "grid", "codebook_size", "weights_hash")


def load(
    run_dir: str | Path,
    *,
    raw: bool = False,
    tokenizer: Any = None,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    allow_untrained_guidance: bool = False,
) -> AiMPipeline:
    """Load the pipeline of a training run: ``load("runs/demo_aim/main").generate([0, 1, 2])``.

    Args:
        run_dir: run directory of an AiM experiment, or one of its checkpoint files.
        raw: use the trained weights instead of their average.
        tokenizer: the tokenizer to use; by default the one that the run's configuration names.
        backend: of the network (see `AiM`); need not be the one used in training.
        device: where to generate, such as "cuda".
        allow_untrained_guidance: see `AiMPipeline`.

    Raises:
        UserError: no checkpoint, one of another model, a tokenizer that does not belong to it, a backend that is
            not available, or an unknown device.
    """
    if not Path(run_dir).exists():
        accepted = "a run directory such as runs/demo_aim/main, or a checkpoint file; from_pretrained takes hub ids"
        raise UserError(f"{run_dir} does not exist; give {accepted}")
    path = newest_checkpoint(run_dir)
    source = read_source(path, raw=raw)
    check_content(source.run, path)
    aim = import_aim(source, backend=backend)
    if tokenizer is None:
        tokenizer = load_tokenizer(_tokenizer_source(source.run["configuration"], path))
    # Codes of another tokenizer have the right shape, but decode to noise.
    source.check_tokenizer(tokenizer)
    record = (source.class_names, source.label_dropout, allow_untrained_guidance)
    return AiMPipeline(aim, tokenizer, *record).to(device)


def load_tokenizer(source: str | Path | Mapping[str, Any]) -> Any:
    """Load the tokenizer that the key `tokenizer` names, in evaluation mode and without gradients, on the CPU.

    Args:
        source: a run, a checkpoint or published weights of a VQ tokenizer (see `aim_lightning.weights`); or a mapping
            of class_path and init_args: any torch module with `encode`, `decode`, `grid`, `codebook_size` and
            `weights_hash` (docs/extending.md). Its code is run.

    Raises:
        UserError: no weights, or those of another model; no such class, or one that lacks part of the protocol.
    """
    if not isinstance(source, Mapping) or "class_path" not in source:
        return import_vq(source).requires_grad_(False)
    tokenizer = build_object(source, nn.Module, "tokenizer")
    if lacking := [name for name in PROTOCOL if not hasattr(tokenizer, name)]:
        raise UserError(f"tokenizer: {source['class_path']} has no {', '.join(lacking)}; see docs/extending.md")
    return tokenizer.eval().requires_grad_(False)


def _tokenizer_source(configuration: dict, path: Path) -> Path:
    """Return the run's tokenizer, relative to this directory or next to the run where that was moved."""
    source = configuration.get("tokenizer")
    if not source:
        raise UserError(f"{path} names no tokenizer; pass tokenizer= (or --tokenizer)")
    if isinstance(source, dict):  # a checkpoint must run no code
        name = source.get("class_path")
        raise UserError(f"{path} was trained with a tokenizer of class {name}; pass tokenizer=, or set it by --config")
    candidates, checkpoint, runs_root = [Path(source)], path.resolve(), configuration["runs_root"]
    in_run = checkpoint.parent.name in ("checkpoints", "best") and len(checkpoint.parents) > 3
    if in_run and Path(source).is_relative_to(runs_root):
        # The checkpoint is RUNS/EXPERIMENT/RUN/checkpoints/FILE, and RUNS was runs_root when it was written.
        candidates.append(checkpoint.parents[3] / Path(source).relative_to(runs_root))
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise UserError(f"{path} names the tokenizer {source}, which is not here; pass tokenizer= (or --tokenizer)")
