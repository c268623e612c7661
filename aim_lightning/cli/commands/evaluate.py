"""`aim-lightning evaluate`: generate samples, or read existing ones, and score them."""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_lightning.cli.common_options import GENERATING, add_shared, flag, number, option
from aim_lightning.cli.config import Config
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import tolerate_disk_errors, write_bytes, write_json
from aim_lightning.utils.logging import log, log_next
from aim_lightning.utils.process import is_rank_zero

if TYPE_CHECKING:
    from aim_lightning.evaluation.image_sets import ImageSet
    from aim_lightning.evaluation.scorer import Scorer

HELP = "generate samples (or read existing ones) and score them: FID, IS, KID, MIND, precision, recall, coverage, …"
WITHOUT_RUN = ("samples", "weights", "compare")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_shared(parser, *GENERATING, "record")
    parser.add_argument("--samples", metavar="PATH", help="score this .npz (arr_0) or directory; no run is needed")
    sources = (
        "table and plot of EXPERIMENT/RUN, models of the paper (AiM-B), records (.json), image sets; * = mean over"
    )
    parser.add_argument("--compare", nargs="+", metavar="SOURCE", help=f"{sources} matches")
    parser.add_argument("--keep_images", **flag("write samples.npz", True))
    nearest = "show N samples next to their nearest training images, and compare all distances with held-out images"
    parser.add_argument("--nearest", **option(nearest, metavar="N", type=number(int, 1)))
    parser.add_argument("--out", metavar="DIR", help="directory for the results (default: inside the run)")


# Options without effect next to --samples, --weights, and --compare.
OF_SAMPLING = ("--weights", "--checkpoint", "--raw", "--seeds", "--labels", "--classes", "--num", "--keep_images")
OF_SAMPLING += ("--allow_untrained_guidance", "--nearest")
OF_RUN = ("--checkpoint", "--raw")
OF_SETS = ("--samples", "--record", *OF_SAMPLING)


def run(config: Config, options: argparse.Namespace) -> int:
    """Write record, archive and images of a set, one more record for several seeds; or compare sources."""
    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.evaluation.scorer import RECORD

    setup.refuse(options, "--samples", OF_SAMPLING)
    setup.refuse(options, "--weights", OF_RUN)
    setup.refuse(options, "--compare", OF_SETS)
    if options.compare:
        return _compare(config, options)
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
        sweep = "" if options.weights else f'make sweep {config.run_directory.variables} GRID="cfg_scale=1,1.5,2", or '
        log_next(f"{sweep}make table (after --record NAME)")
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
    # With --out, the run may belong to another user.
    with tolerate_disk_errors(directory.results):
        record_results(directory, f"evaluate_{next(iter(metrics))}", model["step"], facts, metrics, record["hardware"])


def _score_existing(config: Config, options: argparse.Namespace) -> int:
    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.evaluation.image_sets import open_images
    from aim_lightning.evaluation.scorer import PREVIEW, RECORD

    # A missing file is reported before the reference is computed.
    images = open_images(options.samples)
    scorer = setup.make_scorer(config, options, setup.start(config))
    record, directory = _score_images(images, Path(options.samples), scorer, config, options.out)
    if scorer.ranks.is_rank_zero:
        setup.show(record, options)
        log(f"results: {directory / RECORD}, {directory / PREVIEW}")
    return 0


def _score_images(
    images: "ImageSet", path: Path, scorer: "Scorer", config: Config, out: str | None = None, reuse: bool = False
) -> tuple[dict[str, Any], Path]:
    """Score an image set and return its record and its directory. Every rank must call it.

    Args:
        images: opened from `path`.
        path: of the images.
        scorer: for the feature networks and the reference.
        config: of the command.
        out: directory for the results; None = in `given` of the runs.
        reuse: return an earlier record of the same content and protocol.
    """
    from aim_lightning.evaluation.score_record import read_record, score_record
    from aim_lightning.evaluation.scorer import PREVIEW, RECORD
    from aim_lightning.utils.short_key import short_key

    ranks, protocol = scorer.ranks, scorer.protocol(len(images))
    state, source = ranks.on_rank0(lambda: (images.state(), images.identity()))
    # Archives of `evaluate` have one name, so the directory's name needs a hash of the content.
    name = f"{path.stem}-{short_key([source['sha256'], protocol])}"
    directory = Path(out or Path(config.values["runs_root"]) / "given" / name)
    if reuse and ranks.broadcast((directory / RECORD).is_file()):
        return read_record(directory / RECORD), directory
    values, speed = scorer.score(images)
    if ranks.on_rank0(images.state) != state:
        raise UserError(f"{path} changed while it was read; run the command again")
    performance = {**scorer.performance, **speed, "processes": ranks.world_size}
    protocol = {"pictures": source, **protocol}
    record = score_record(source, {}, values, len(images), protocol, performance, scorer.hardware())
    if ranks.is_rank_zero:
        write_bytes(directory / PREVIEW, images.preview(None))
        write_json(directory / RECORD, record)
    return record, directory


def _compare(config: Config, options: argparse.Namespace) -> int:
    """Write comparison.md, comparison.csv and comparison.png; image sets are scored first."""
    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.evaluation.image_sets import open_images
    from aim_lightning.evaluation.report import comparison, plots, sources
    from aim_lightning.utils.short_key import short_key

    # Records need neither a feature network nor a reference.
    scorer = functools.cache(lambda: setup.make_scorer(config, options, setup.start(config)))
    runs_root = Path(config.values["runs_root"])

    def score(path: Path) -> dict[str, Any]:
        return _score_images(open_images(path), path, scorer(), config, reuse=True)[0]

    def check(path: Path) -> dict[str, Any]:
        open_images(path)
        return {"metrics": {}, "protocol": {}}

    for source in options.compare:  # faults of the last source are reported before the first image set is scored
        sources.read_row(source, runs_root, check)
    rows = [sources.read_row(source, runs_root, score) for source in options.compare]
    if is_rank_zero():
        directory = Path(options.out or runs_root / "comparisons" / short_key(options.compare))
        log(comparison.write_tables(directory, rows))
        plots.write_comparison(directory / "comparison.png", rows)
        log(f"results: {', '.join(str(directory / f'comparison.{end}') for end in ('md', 'csv', 'png'))}")
    return 0
