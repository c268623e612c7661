"""`aim-lightning evaluate`: draw samples, or take given ones, and score them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_lightning.cli.common_options import add_generating, add_record, boolean
from aim_lightning.cli.config import Config
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_bytes, write_json
from aim_lightning.utils.logging import log

if TYPE_CHECKING:
    from aim_lightning.evaluation.image_sets import ImageSet
    from aim_lightning.evaluation.scorer import Scorer
    from aim_lightning.utils.dist import ProcessGroup

HELP = "generate samples (or read existing ones) and score them: FID, sFID, IS, KID, precision, recall"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_generating(parser)
    parser.add_argument("--samples", metavar="PATH", help="score this .npz (arr_0) or directory; no run is needed")
    parser.add_argument("--keep_images", type=boolean, default=True, metavar="BOOL", help="write samples.npz")
    parser.add_argument("--out", metavar="DIR", help="directory for the results (default: inside the run)")
    add_record(parser)


def without_run(options: argparse.Namespace) -> bool:
    """Return True if the images do not come from a run."""
    return bool(options.samples or options.weights)


RESULTS = Path("experiments/results")
# What given images, and published weights, leave without a meaning.
WITHOUT_DRAWING = ("--weights", "--checkpoint", "--raw", "--seeds", "--labels", "--classes", "--num", "--keep_images")
WITHOUT_RUN = ("--checkpoint", "--raw")


def run(document: Config, options: argparse.Namespace) -> int:
    """Writes scores.json (and summary.json for several seeds), samples.npz and preview.png."""
    from aim_lightning.cli.build.evaluation_setup import (
        make_evaluation,
        make_generator,
        make_plan,
        make_scorer,
        refuse,
        sampling_options,
        seeds,
        show,
        start,
    )
    from aim_lightning.cli.build.trainer_cli import quiet
    from aim_lightning.evaluation.image_sets import open_images
    from aim_lightning.evaluation.score_record import over_seeds
    from aim_lightning.evaluation.scorer import RECORD

    quiet()
    check_record_name(options.record)
    refuse(options, "--samples", WITHOUT_DRAWING)
    refuse(options, "--weights", WITHOUT_RUN)
    if options.samples:
        images = open_images(options.samples)  # a mistake shows before the reference is worked out
        return _score_given(document, options, images)
    sampling = sampling_options(document)
    ranks, device = start(document)
    generator = make_generator(document, options, device)
    plan = make_plan(options, generator, sampling)
    evaluation = make_evaluation(
        document, options, generator, make_scorer(document, options, ranks, device), options.keep_images
    )
    records = [evaluation.run(plan, replace(sampling, seed=seed)) for seed in seeds(options, sampling.seed)]
    record = over_seeds(records)
    directory = evaluation.directory(plan, sampling)
    place = directory / RECORD
    if ranks.is_rank_zero:
        if len(records) > 1:
            place = evaluation.root / f"{directory.name}-{len(records)}seeds.json"
            write_json(place, record)
        if not options.weights:
            _keep_in_results(document, record)
        keep(record, options.record)
    show(record)
    log(f'results: {place}\nnext: make table (after --record NAME), or make sweep GRID="cfg_scale=1,1.5,2"')
    return 0


def _keep_in_results(document: Config, record: dict[str, Any]) -> None:
    """Into results.json of the run, where the checkpoint is its newest."""
    from aim_lightning.cli.build.evaluation_setup import directory
    from aim_lightning.runs.results import record as record_results

    place, model = directory(document), record["model"]
    newest = place.checkpoints()
    if not newest or (newest[0].name, place.experiment, place.run) != tuple(
        model[key] for key in ("checkpoint", "experiment", "run")
    ):
        log(f"{model['checkpoint']} is not the newest checkpoint of {place.path}: results.json stays as it is")
        return
    first = next(iter(record["metrics"]))  # its name tells features, number of images and raw weights
    facts = {**model, **record["protocol"], "seeds": record["seeds"], "std": record["std"]}
    record_results(place, f"evaluate_{first}", model["step"], facts, record["metrics"], record["hardware"])


def _score_given(document: Config, options: argparse.Namespace, images: ImageSet) -> int:
    from aim_lightning.cli.build.evaluation_setup import check_feature_batch, directory, make_scorer, show, start
    from aim_lightning.evaluation.npz_export import preview_png
    from aim_lightning.evaluation.score_record import short_key
    from aim_lightning.evaluation.scorer import PREVIEW, RECORD

    check_feature_batch(options)
    ranks, device = start(document)
    scorer = make_scorer(document, options, ranks, device)
    state, source = ranks.on_rank0(lambda: (images.state(), images.identity()))
    values, speed = scorer.score(images)
    if ranks.on_rank0(images.state) != state:
        raise UserError(f"--samples {options.samples} changed while it was read; run the command again")
    if ranks.is_rank_zero:
        protocol = scorer.protocol(len(images))
        name = (
            f"{Path(options.samples).stem}-{short_key([source['sha256'], protocol])}"  # every archive is called samples
        )
        directory = Path(options.out or Path(document.values["runs_root"]) / "given" / name)
        record = _given_record(scorer, source, values, speed, ranks)
        write_bytes(directory / PREVIEW, preview_png(images, None))
        write_json(directory / RECORD, record)
        keep(record, options.record)
        show(record)
        log(f"results: {directory / RECORD}, {directory / PREVIEW}")
    return 0


def _given_record(
    scorer: Scorer, source: dict[str, Any], values: dict[str, float], speed: dict[str, float], ranks: ProcessGroup
) -> dict[str, Any]:
    from aim_lightning.evaluation.score_record import score_record

    count = source["pictures"]
    protocol = {"pictures": source, **scorer.protocol(count)}
    performance = {**scorer.performance, **speed, "processes": ranks.world_size}
    return score_record(source, {}, values, count, protocol, performance, scorer.hardware())


def check_record_name(name: str | None, directory: Path = RESULTS) -> None:
    """Raises UserError for a name that is no plain file name."""
    from aim_lightning.cli.build.evaluation_setup import directory

    if name is not None and (not name or Path(name).name != name or name.startswith(".")):
        raise UserError(f"--record is {name!r}; give a plain name, {directory}/ gets what is recorded")


def keep(record: dict[str, Any], name: str | None) -> None:
    """A copy for `make table`."""
    if name:
        write_json(RESULTS / f"{name}.json", record)
        log(f"recorded in {RESULTS / name}.json")
