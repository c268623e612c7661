"""What evaluate, sweep, follow and reproduce share: processes, the scorer, the generator, labels."""

import argparse
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from aim_lightning.cli.commands.config import backend_of
from aim_lightning.cli.common_options import choose_classes
from aim_lightning.cli.config import Config
from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.evaluated_model import EvaluatedModel, from_published, from_run
from aim_lightning.evaluation.reference import Reference
from aim_lightning.evaluation.sample_blocks import resolve_options
from aim_lightning.evaluation.sample_plan import SamplePlan, balanced_labels, read_labels
from aim_lightning.evaluation.scorer import Evaluation, Scorer
from aim_lightning.metrics.features import FeatureNetwork, InceptionFeatures
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.instantiate import build_object
from aim_lightning.utils.logging import log


def start(document: Config) -> tuple[ProcessGroup, torch.device]:
    """Start the other processes as `trainer` asks (devices, nodes, torchrun, SLURM).

    Raises:
        UserError: devices that are not there.
    """
    trainer = document.values["trainer"]
    asked = {key: trainer[key] for key in ("accelerator", "devices", "num_nodes") if key in trainer}
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")
    try:
        fabric = Fabric(**asked)
        fabric.launch()
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None
    return ProcessGroup(), fabric.device


def refuse(options: argparse.Namespace, given: str, ignored: tuple[str, ...]) -> None:
    """Raises UserError for options on the command line that `given`, which is there too, leaves without a meaning."""
    typed = {word.partition("=")[0] for word in options.given.rest}
    useless = [name for name in ignored if name in typed]
    if given in typed and useless:
        raise UserError(f"{given} leaves {', '.join(useless)} without a meaning; give one or the other")


def make_scorer(document: Config, options: argparse.Namespace, ranks: ProcessGroup, device: torch.device) -> Scorer:
    """Feature network and reference of the document and the command line."""
    check_feature_batch(options)
    network, values = _features(document), document.values["images"]
    network.weights_path()  # missing weights are reported before images are read
    reference = Reference(options.reference, Images(**values) if values else None)
    network.load(device)
    real = reference.statistics(network, ranks, options.cache, options.feature_batch)
    speed = {"reference": reference.performance} if reference.performance else {}
    size = reference.image_size()
    scorer = Scorer(network, real, size, ranks, options.splitting, options.feature_batch)
    return replace(scorer, performance=speed)


def check_feature_batch(options: argparse.Namespace) -> None:
    """Raises UserError for no images at once."""
    if options.feature_batch < 1:
        raise UserError(f"--feature_batch is {options.feature_batch}; it must be at least 1")


def _features(document: Config) -> FeatureNetwork:
    section = document.values["features"]
    if section is None:
        return InceptionFeatures()
    return build_object(section, FeatureNetwork, "features")


def make_generator(document: Config, options: argparse.Namespace, device: torch.device) -> EvaluatedModel:
    """Published weights, or the run's checkpoint."""
    if getattr(options, "weights", None):
        return from_published(options.weights, device, backend_of(document))
    source = getattr(options, "checkpoint", None) or directory(document).path
    tokenizer = document.values["tokenizer"]
    tokenizer = load_tokenizer(tokenizer) if tokenizer else None
    return from_run(Path(source), raw=options.raw, tokenizer=tokenizer, device=device, backend=backend_of(document))


def make_evaluation(
    document: Config, options: argparse.Namespace, generator: EvaluatedModel, scorer: Scorer, keep_images: bool
) -> Evaluation:
    """Puts generator and scorer together, below the run's directory."""
    data = {"pictures": Path(document.values["images"]["train"]).parent.name} if document.values["images"] else {}
    return Evaluation(generator, scorer, evaluations_root(document, options, generator), data, keep_images)


def evaluations_root(document: Config, options: argparse.Namespace, generator: EvaluatedModel) -> Path:
    """runs/EXPERIMENT/RUN/evaluations, or runs/published/NAME/evaluations; --out overrides."""
    if getattr(options, "out", None):
        return Path(options.out)
    if getattr(options, "weights", None):
        return RunDirectory("published", generator.name, document.values["runs_root"]).path / "evaluations"
    return directory(document).path / "evaluations"


def directory(document: Config) -> RunDirectory:
    """The run's."""
    values = document.values
    return RunDirectory(str(values["experiment"]), str(values["run"]), values["runs_root"])


def sampling_options(document: Config) -> SamplingOptions:
    """Of the document."""
    return SamplingOptions(**document.values["sampling"])


def make_labels(options: argparse.Namespace, generator: EvaluatedModel) -> Tensor:
    """--labels, or balanced over --classes or all of them.

    Raises:
        UserError: no such class or file, or both are given.
    """
    names = generator.pipeline.class_names
    labels, classes = getattr(options, "labels", None), getattr(options, "classes", None)
    refuse(options, "--labels", ("--num",))
    if labels and classes:
        raise UserError("--labels and --classes exclude each other; give one")
    if labels:
        return read_labels(labels, len(names))
    chosen = choose_classes(classes, names) if classes else range(len(names))
    return balanced_labels(options.num, chosen)


def make_plan(options: argparse.Namespace, generator: EvaluatedModel, sampling: SamplingOptions) -> SamplePlan:
    """Labels in blocks of sampling.batch_size. Every process must call it."""
    return SamplePlan(
        make_labels(options, generator), resolve_options(generator.pipeline, sampling, ProcessGroup()).batch_size
    )


def seeds(options: argparse.Namespace, first: int) -> list[int]:
    """Counted on from the first."""
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}; it must be at least 1")
    return [first + i for i in range(options.seeds)]


def show(record: dict[str, Any]) -> None:
    """The metrics, one a line, with their spread over seeds."""
    spread = record.get("std") or {}
    for name, value in record["metrics"].items():
        more = f" ± {spread[name]:.4f}" if len(record.get("seeds", [])) > 1 else ""
        log(f"  {name:36s}{value:z12.4f}{more}")
    for what, speed in record["performance"].items():
        if isinstance(speed, dict) and speed:
            log(f"  {what:12s}{speed['images_per_s']:10.1f} images/s, peak {speed['peak_memory_gib']:.1f} GiB")
