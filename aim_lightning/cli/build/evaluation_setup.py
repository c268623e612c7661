"""The common setup of evaluate, sweep, follow and reproduce: ranks, scorer, model and samples."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException

from aim_lightning.cli.build.trainer_cli import quiet
from aim_lightning.cli.common_options import choose_classes
from aim_lightning.cli.config import Config, read_section
from aim_lightning.data.images.dataset import Images
from aim_lightning.evaluation.evaluated_model import EvaluatedModel, from_published, from_run
from aim_lightning.evaluation.image_sets import check_size, decoded_size
from aim_lightning.evaluation.nearest import NearestImages
from aim_lightning.evaluation.reference import Reference
from aim_lightning.evaluation.sample_blocks import SamplePlan, balanced_labels, read_labels, resolve_options
from aim_lightning.evaluation.score_record import describe_reference, over_seeds, same_images
from aim_lightning.evaluation.scorer import Evaluation, Scorer
from aim_lightning.metrics.fdr import network_label
from aim_lightning.metrics.features import FeatureNetwork, InceptionFeatures
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.sampling import SamplingOptions
from aim_lightning.utils.dist import ProcessGroup
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_json
from aim_lightning.utils.instantiate import build_object
from aim_lightning.utils.logging import log

RESULTS = Path("experiments/results")  # that `make table` reads


def start(config: Config) -> torch.device:
    """Start the ranks that `trainer` configures and return the device of this rank.

    Raises:
        UserError: the devices do not exist.
    """
    quiet()
    options = {key: config.trainer[key] for key in ("accelerator", "devices", "num_nodes") if key in config.trainer}
    try:
        fabric = Fabric(**options)
        fabric.launch()
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from None
    return fabric.device


def refuse(options: argparse.Namespace, option: str, ignored: tuple[str, ...]) -> None:
    """Raise a UserError if an option is combined with others that it makes ineffective."""
    typed = {word.partition("=")[0] for word in options.arguments.rest}
    useless = [name for name in ignored if name in typed]
    if option in typed and useless:
        raise UserError(f"command line: {', '.join(useless)} cannot be combined with {option}; give one or the other")


def prepare(
    config: Config, options: argparse.Namespace, device: torch.device, keep_images: bool
) -> tuple[Evaluation, SamplePlan]:
    """Load the model, plan its samples, then load the scorer. Every rank must call it.

    Args:
        config: of the command.
        options: of the command line.
        device: of this rank, from `start`.
        keep_images: write samples.npz.
    """
    sampling = config.sampling  # checked before weights are read
    model = load_model(config, options, device)
    plan = make_plan(options, model, sampling)
    return make_evaluation(config, options, model, make_scorer(config, options, device), keep_images), plan


def run_seeds(
    evaluation: Evaluation, plan: SamplePlan, options: argparse.Namespace, sampling: SamplingOptions
) -> dict[str, Any]:
    """Evaluate with --seeds consecutive seeds and return the record over seeds. Every rank must call it."""
    return over_seeds([evaluation.run(plan, replace(sampling, seed=seed)) for seed in seeds(options, sampling.seed)])


def make_scorer(config: Config, options: argparse.Namespace, device: torch.device) -> Scorer:
    """Load the feature networks and the statistics of the reference. Every rank must call it.

    Raises:
        UserError: weights or images are missing, two networks have one name, or the held-out images are the reference.
    """
    features = config.values["features"]
    networks = [build_object(features, FeatureNetwork, "features") if features else InceptionFeatures()]
    for path in options.more_features or []:
        section = read_section(path, "features", "--more_features")
        networks.append(build_object(section, FeatureNetwork, "features"))
    for network in networks:
        network.weights_path()  # missing weights are reported before images are read
    labels = [network_label(network) for network in networks]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"--more_features: {twice[0]} is used twice; give every feature network once")
    scorer, *others = [_scorer(config, options, network.load(device)) for network in networks]
    # Without the probe of other networks: the name of class agreement does not contain the network.
    scorer.more = [replace(other, reference=replace(other.reference, probe=None)) for other in others]
    return scorer


def _scorer(config: Config, options: argparse.Namespace, network: FeatureNetwork) -> Scorer:
    ranks, images = ProcessGroup(), config.values["images"]
    images = Images(**images) if images else None
    reference, heldout = Reference(options.reference, images), None
    statistics = reference.statistics(network, ranks, options.cache, options.feature_batch)
    if options.fdr:
        others = Reference(None if options.fdr == "val" else options.fdr, images, "val", option="--fdr")
        check_size(others.image_size(), reference.image_size())
        if ranks.on_rank0(lambda: same_images(others.identity(), reference.identity())):
            raise UserError("--fdr: these are the reference images; give held-out images")
        heldout = others.statistics(network, ranks, options.cache, options.feature_batch, probe=False)
    performance = {"reference": reference.performance} if reference.performance else {}
    how = reference.image_size(), ranks, options.splitting, options.feature_batch
    return Scorer(network, statistics, *how, performance=performance, heldout=heldout)


def load_model(config: Config, options: argparse.Namespace, device: torch.device) -> EvaluatedModel:
    """Load published weights, a checkpoint, or the newest checkpoint of the run. Every rank must call it."""
    loading = {"device": device, "backend": config.init_args("model").get("backend", "auto")}
    loading["allow_untrained_guidance"] = getattr(options, "allow_untrained_guidance", False)
    if getattr(options, "weights", None):
        return from_published(options.weights, **loading)
    source = Path(getattr(options, "checkpoint", None) or config.run_directory.path)
    tokenizer = config.values["tokenizer"]
    tokenizer = load_tokenizer(tokenizer) if tokenizer else None
    return from_run(source, raw=options.raw, tokenizer=tokenizer, **loading)


def make_evaluation(
    config: Config, options: argparse.Namespace, model: EvaluatedModel, scorer: Scorer, keep_images: bool
) -> Evaluation:
    """Combine model and scorer; write to --out, or to `evaluations` of the run or weights."""
    images = config.values["images"]
    data = {"pictures": Path(images["train"]).parent.name} if images else {}
    if getattr(options, "out", None):
        root = Path(options.out)
    elif getattr(options, "weights", None):
        root = RunDirectory("published", model.name, config.values["runs_root"]).path / "evaluations"
    else:
        root = config.run_directory.path / "evaluations"
    nearest = _nearest(config, options, model, scorer) if getattr(options, "nearest", None) else None
    return Evaluation(model, scorer, root, data, keep_images, nearest)


def _nearest(config: Config, options: argparse.Namespace, model: EvaluatedModel, scorer: Scorer) -> NearestImages:
    if not config.values["images"]:
        raise UserError("--nearest: the training images are unknown; give --config of an experiment with images")
    images = Images(**config.values["images"])
    train, heldout = (Reference(None, images, split, "--nearest") for split in ("train", "val"))
    check_size(decoded_size(model.pipeline.tokenizer), train.image_size())
    if scorer.ranks.on_rank0(lambda: same_images(train.identity(), heldout.identity())):
        raise UserError("--nearest: images.val are the training images; give held-out images")
    how = scorer.network, scorer.ranks, scorer.batch_size, options.nearest
    return NearestImages(train.images, heldout.images, *how)


def make_plan(options: argparse.Namespace, model: EvaluatedModel, sampling: SamplingOptions) -> SamplePlan:
    """Return the labels in blocks of sampling.batch_size. Every rank must call it."""
    file, classes = getattr(options, "labels", None), getattr(options, "classes", None)
    names = model.pipeline.class_names
    refuse(options, "--labels", ("--num",))
    if file and classes:
        raise UserError("--labels and --classes exclude each other; give one")
    chosen = choose_classes(classes, names) if classes else range(len(names))
    labels = read_labels(file, len(names)) if file else balanced_labels(options.num, chosen)
    return SamplePlan(labels, resolve_options(model.pipeline, sampling, ProcessGroup()).batch_size)


def seeds(options: argparse.Namespace, first: int) -> list[int]:
    """Return --seeds consecutive seeds."""
    return list(range(first, first + options.seeds))


def show(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Log one metric per line, with its spread over seeds, then the speeds; write the file of --record.

    Args:
        record: of the scores.
        options: with --reference, the line of the reference is added.
    """
    if name := getattr(options, "record", None):
        write_json(RESULTS / f"{name}.json", record)
        log(f"recorded in {RESULTS / name}.json")
    several = len(record.get("seeds", [])) > 1
    for name, value in record["metrics"].items():
        spread = f" ± {record['std'][name]:.4f}" if several else ""
        log(f"  {name:36s}{value:z12.4f}{spread}")
    if options.reference:
        log(f"  reference: {describe_reference(record['protocol']['reference'])}")
    for name, speed in record["performance"].items():
        if isinstance(speed, dict) and speed:
            log(f"  {name:12s}{speed['images_per_s']:10.1f} images/s, peak {speed['peak_memory_gib']:.1f} GiB")
