"""`aim-lightning reproduce`: published weights, 50,000 samples, a row beside the paper's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aim_lightning.cli.commands.evaluate import check_record_name, keep
from aim_lightning.cli.common_options import add_record, add_scoring, add_seeds
from aim_lightning.cli.config import Config
from aim_lightning.evaluation.report.paper_results import AIM, paper_row
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import write_json
from aim_lightning.utils.logging import log

if TYPE_CHECKING:
    from aim_lightning.utils.dist import ProcessGroup

HELP = "evaluate published weights and print a row next to the paper's"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_scoring(parser)
    parser.add_argument("--preset", required=True, help="row of the paper's table: AiM-B, AiM-L, AiM-XL")
    weights = "directory or hub id (default: weights/aim_b and so on, downloaded)"
    parser.add_argument("--weights", metavar="SOURCE", help=weights)
    add_seeds(parser)
    add_record(parser)


def without_run(options: argparse.Namespace) -> bool:
    """Return True: the weights are published ones."""
    return True


# The paper's sampler settings are published nowhere: its ablation's guidance and the published decoder's positions.
SETTINGS = {"cfg_scale": 2.0, "position_offset": 1}


def run(document: Config, options: argparse.Namespace) -> int:
    """Fetches what is missing, evaluates and prints both rows."""
    from aim_lightning.cli.build.evaluation_setup import (
        make_evaluation,
        make_generator,
        make_plan,
        make_scorer,
        sampling_options,
        seeds,
        show,
        start,
    )
    from aim_lightning.cli.build.trainer_cli import quiet
    from aim_lightning.evaluation.report.table import beside_paper
    from aim_lightning.evaluation.score_record import over_seeds
    from aim_lightning.evaluation.scorer import RECORD
    from aim_lightning.weights.download import DOWNLOADS

    quiet()
    row = paper_row(options.preset)
    if row is None:
        raise UserError(f"--preset is {options.preset!r}; the paper's table has {', '.join(one.model for one in AIM)}")
    if options.weights is None and row.model not in DOWNLOADS:
        raise UserError(f"{row.model} has no published weights; give --weights")
    check_record_name(options.record)
    document.values["sampling"] = {**SETTINGS, **document.values["sampling"]}
    sampling = sampling_options(document)
    ranks, device = start(document)
    _fetch_missing(document, options, row.model, ranks)
    generator = make_generator(document, options, device)
    plan = make_plan(options, generator, sampling)
    scorer = make_scorer(document, options, ranks, device)
    evaluation = make_evaluation(document, options, generator, scorer, keep_images=True)
    records = [evaluation.run(plan, replace(sampling, seed=seed)) for seed in seeds(options, sampling.seed)]
    record = over_seeds(records)
    if ranks.is_rank_zero:
        write_json(evaluation.root / f"{row.model}.json", record)
        keep(record, options.record)
    show(record)
    log("\n" + beside_paper(record, row))
    _say_protocol(record, options.num)
    log(f"results: {evaluation.directory(plan, sampling) / RECORD}; next: make table (after --record NAME)")
    return 0


def _fetch_missing(document: Config, options: argparse.Namespace, model: str, ranks: ProcessGroup) -> None:
    """Weights, Inception and reference where none are given, by the first process; a file that is there is checked.

    Raises:
        UserError: no connection, or another file than was published; on all processes.
    """
    from aim_lightning.weights.download import DOWNLOADS

    ranks.on_rank0(lambda: _fetch(options, model, inception=document.values["features"] is None))
    options.weights = options.weights or str(_directory(model))
    options.reference = options.reference or DOWNLOADS["adm"].path


def _fetch(options: argparse.Namespace, model: str, inception: bool) -> None:
    from aim_lightning.weights.download import DOWNLOADS, download

    if options.weights is None and not _directory(model).exists():  # files brought by hand have no record to check
        log(f"downloaded {download(DOWNLOADS[model])}")
    wanted = {"adm": options.reference is None, "inception": inception}
    for name in (name for name, missing in wanted.items() if missing):
        log(f"using {download(DOWNLOADS[name])}")


def _directory(model: str) -> Path:
    from aim_lightning.weights.download import DOWNLOADS

    return Path(DOWNLOADS[model].path)


def _say_protocol(record: dict, num: int) -> None:
    """What keeps the two rows from being comparable."""
    features = record["protocol"]["features"]["network"]
    if not any(name.startswith("fid_") for name in record["metrics"]):
        log(f"these are distances on {features}, no FID: they compare with no paper")
    if num < 50_000:
        log(f"{num:,} samples in place of 50,000: FID is biased upwards, compare it with none")
