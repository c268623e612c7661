"""`aim-lightning reproduce`: published weights, 50,000 samples, a row next to the paper's."""

import argparse
from pathlib import Path

from aim_lightning.cli.common_options import SCORING, add_shared
from aim_lightning.cli.config import Config
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_json
from aim_lightning.utils.logging import log, log_next

HELP = "evaluate published weights and print a row next to the paper's"
WITHOUT_RUN = ("preset",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_shared(parser, *SCORING, "seeds", "record")
    parser.add_argument("--preset", required=True, help="row of the paper's table: AiM-B, AiM-L, AiM-XL")
    weights = "directory or hub id (default: weights/aim_b and so on, downloaded)"
    parser.add_argument("--weights", metavar="SOURCE", help=weights)


# The paper does not publish its sampler settings: these are its ablation's guidance and the published code's positions.
SETTINGS = {"cfg_scale": 2.0, "position_offset": 1}


def run(config: Config, options: argparse.Namespace) -> int:
    """Download missing files, evaluate, and print our row and the paper's."""
    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.evaluation.report.table import compare_with_paper, paper_results
    from aim_lightning.evaluation.scorer import RECORD
    from aim_lightning.utils.dist import ProcessGroup
    from aim_lightning.weights.download import DOWNLOADS

    rows = {row["model"].lower(): row for row in paper_results()["aim"]}
    if (row := rows.get(options.preset.lower())) is None:
        models = ", ".join(row["model"] for row in rows.values())
        raise UserError(f"--preset is {options.preset!r}; the paper's table has {models}")
    model = row["model"]
    if options.weights is None and model not in DOWNLOADS:
        raise UserError(f"{model} has no published weights; give --weights")
    config.values["sampling"] = {**SETTINGS, **config.values["sampling"]}
    device = setup.start(config)
    # Rank 0 downloads for all ranks; its errors are raised on all of them.
    ProcessGroup().on_rank0(lambda: _download(options, model, inception=config.values["features"] is None))
    options.weights = options.weights or DOWNLOADS[model].path
    options.reference = options.reference or DOWNLOADS["adm"].path
    evaluation, plan = setup.prepare(config, options, device, keep_images=True)
    record = setup.run_seeds(evaluation, plan, options, config.sampling)
    if evaluation.scorer.ranks.is_rank_zero:
        write_json(evaluation.root / f"{model}.json", record)
        setup.show(record, options)
        log("\n" + compare_with_paper(record, row))
        if not any(name.startswith("fid_") for name in record["metrics"]):
            features = record["protocol"]["features"]["network"]
            log(f"these are distances on {features} features, not FID; do not compare them with a paper")
        if options.num < 50_000:
            log(f"{options.num:,} samples instead of 50,000; FID is biased upwards, do not compare it")
        log(f"results: {evaluation.directory(plan, config.sampling) / RECORD}")
        log_next("make table (after --record NAME)")
    return 0


def _download(options: argparse.Namespace, model: str, inception: bool) -> None:
    """Download weights, reference and Inception where the command line does not name them; existing files are verified.

    Raises:
        UserError: the server cannot be reached, or a file is not the published one.
    """
    from aim_lightning.weights.download import DOWNLOADS, download

    # Existing weights are used as they are: files that the user has copied have no record to verify.
    has_weights = options.weights is not None or Path(DOWNLOADS[model].path).exists()
    for name, is_missing in {model: not has_weights, "adm": options.reference is None, "inception": inception}.items():
        if is_missing:
            log(f"using {download(DOWNLOADS[name])}")
