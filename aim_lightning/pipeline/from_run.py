"""A generator from a run directory, without Lightning."""

from pathlib import Path
from typing import Any

from aim_lightning.checkpoint.io import check_content
from aim_lightning.pipeline.load_tokenizer import check_hash, load_tokenizer
from aim_lightning.pipeline.pipeline import AiMPipeline
from aim_lightning.runs.directory import newest_checkpoint
from aim_lightning.utils.errors import UserError
from aim_lightning.weights import import_aim, read_source


def load(run_dir: str | Path, *, raw: bool = False, tokenizer: Any = None, backend: str = "auto") -> AiMPipeline:
    """A trained generator for notebooks: ``load("runs/demo_aim/main").generate([0, 1, 2])``.

    Args:
        run_dir: run directory of an AiM experiment, or one of its checkpoint files.
        raw: the trained weights themselves instead of their average.
        tokenizer: use this one; by default the one that the run's configuration names.
        backend: of the network (see `AiM`), whatever it was trained on.

    Raises:
        UserError: no checkpoint, one of another model, a tokenizer that does not belong to it, or a backend that
            cannot be had.
    """
    path = newest_checkpoint(run_dir)
    found = read_source(path, raw=raw)
    check_content(found.run, path)
    content, aim = found.run, import_aim(found, backend=backend)
    if tokenizer is None:
        tokenizer = load_tokenizer(_tokenizer_source(content["configuration"], path))
    check_hash(found, tokenizer)
    return AiMPipeline(aim, tokenizer, content.get("class_names"))


def _tokenizer_source(configuration: dict, path: Path) -> Path:
    """The tokenizer that the run names, from this directory or beside the run wherever that was moved to."""
    source = configuration.get("tokenizer")
    if not source:
        raise UserError(f"{path} names no tokenizer; pass tokenizer=")
    if isinstance(source, dict):  # a checkpoint must run no code
        kind = source.get("class_path")
        raise UserError(f"{path} was trained with a tokenizer of class {kind}; pass tokenizer=, or set it by --config")
    places = [Path(source), *_beside(source, configuration["runs_root"], path.resolve())]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UserError(f"{path} names the tokenizer {source}, which is not here; pass tokenizer= (or --tokenizer)")
    return found


def _beside(source: str, runs_root: str, checkpoint: Path) -> list[Path]:
    """Where a tokenizer below runs_root lies as seen from RUNS/EXPERIMENT/RUN/checkpoints/FILE; nothing elsewhere."""
    below = Path(source).is_relative_to(runs_root)
    in_run = checkpoint.parent.name in ("checkpoints", "best") and len(checkpoint.parents) > 3
    return [checkpoint.parents[3] / Path(source).relative_to(runs_root)] if below and in_run else []
