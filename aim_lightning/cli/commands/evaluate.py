"""`aim-lightning evaluate`: generate samples, or read existing ones, and score them."""

import argparse
from pathlib import Path
from typing import Any

from aim_lightning.cli.common_options import GENERATING, add_shared, flag
from aim_lightning.cli.config import Config
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_bytes, write_json
from aim_lightning.utils.logging import log, log_next

HELP = "generate samples (or read existing ones) and score them: FID, IS, KID, MIND, precision, recall, coverage, …"
WITHOUT_RUN = ("samples", "weights")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_shared(parser, *GENERATING, "record")
    parser.add_argument("--samples", metavar="PATH", help="score this .npz (arr_0) or directory; no run is needed")
    parser.add_argument("--keep_images", **flag("write samples.npz", True))
    parser.add_argument("--out", metavar="DIR", help="directory for the results (default: inside the run)")


# Options without effect next to --samples, and next to --weights.
OF_SAMPLING = ("--weights", "--checkpoint", "--raw", "--seeds", "--labels", "--classes", "--num", "--keep_images")
OF_SAMPLING += ("--allow_untrained_guidance",)
OF_RUN = ("--checkpoint", "--raw")


def run(config: Config, options: argparse.Namespace) -> int:
    """Write scores.json, samples.npz and preview.png, and one more record for several seeds."""
    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.evaluation.scorer import RECORD

    setup.refuse(options, "--samples", OF_SAMPLING)
    setup.refuse(options, "--weights", OF_RUN)
    if options.samples:
        return _score_existing(config, options)
    evaluation, plan = setup.prepare(config, options, setup.start(config), options.keep_images)
    record = setup.run_seeds(evaluation, plan, options, config.sampling)
    directory = evaluation.directory(plan, config.sampling)
    path = directory / RECORD
    if evaluation.scorer.ranks.is_rank_zero:
        if options.seeds > 1:
            path = evaluation.root / f"{directory.name}-{options.seeds}seeds.json"
            write_json(path, record)
        if not options.weights:
            _add_to_results(config, record, options.reference)
        setup.show(record, options)
        log(f"results: {path}")
        log_next('make table (after --record NAME), or make sweep GRID="cfg_scale=1,1.5,2"')
    return 0


def _add_to_results(config: Config, record: dict[str, Any], reference: str | None) -> None:
    """Add the values to the run's results.json if the checkpoint is its newest.

    Names of values against another reference than the training images end with it: fid_50k@ref.npz-HASH.
    """
    from aim_lightning.evaluation.score_record import short_reference
    from aim_lightning.runs.results import record as record_results

    directory, model = config.run_directory, record["model"]
    newest = directory.checkpoints()
    evaluated = tuple(model[key] for key in ("checkpoint", "experiment", "run"))
    if not newest or (newest[0].name, directory.experiment, directory.run) != evaluated:
        log(f"{model['checkpoint']} is not the newest checkpoint of {directory.path}; results.json stays as it is")
        return
    # The name of the first metric contains features, number of images and raw weights.
    suffix = f"@{short_reference(record['protocol']['reference'])}" if reference else ""
    metrics, std = ({f"{name}{suffix}": x for name, x in record[key].items()} for key in ("metrics", "std"))
    facts = {**model, **record["protocol"], "seeds": record["seeds"], "std": std}
    record_results(directory, f"evaluate_{next(iter(metrics))}", model["step"], facts, metrics, record["hardware"])


def _score_existing(config: Config, options: argparse.Namespace) -> int:
    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.evaluation.image_sets import open_images
    from aim_lightning.evaluation.score_record import score_record, short_key
    from aim_lightning.evaluation.scorer import PREVIEW, RECORD

    # A missing file is reported before the reference is computed.
    images = open_images(options.samples)
    scorer = setup.make_scorer(config, options, setup.start(config))
    state, source = scorer.ranks.on_rank0(lambda: (images.state(), images.identity()))
    values, speed = scorer.score(images)
    if scorer.ranks.on_rank0(images.state) != state:
        raise UserError(f"--samples {options.samples} changed while it was read; run the command again")
    if scorer.ranks.is_rank_zero:
        protocol = scorer.protocol(len(images))
        # Archives of `evaluate` have one name, so the directory's name needs a hash of the content.
        name = f"{Path(options.samples).stem}-{short_key([source['sha256'], protocol])}"
        directory = Path(options.out or Path(config.values["runs_root"]) / "given" / name)
        performance = {**scorer.performance, **speed, "processes": scorer.ranks.world_size}
        protocol = {"pictures": source, **protocol}
        record = score_record(source, {}, values, len(images), protocol, performance, scorer.hardware())
        write_bytes(directory / PREVIEW, images.preview(None))
        write_json(directory / RECORD, record)
        setup.show(record, options)
        log(f"results: {directory / RECORD}, {directory / PREVIEW}")
    return 0
