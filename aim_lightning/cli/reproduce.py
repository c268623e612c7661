"""`aim-lightning reproduce`: published weights, 50,000 samples, a row beside the paper's."""

import argparse
from dataclasses import replace
from pathlib import Path

from aim_lightning.cli.build import quiet
from aim_lightning.cli.evaluate import check_record_name, keep
from aim_lightning.cli.scoring import (
    make_evaluation,
    make_generator,
    make_judge,
    make_plan,
    sampling_options,
    seeds,
    show,
    start,
)
from aim_lightning.config import Document
from aim_lightning.evaluation.evaluate import RECORD
from aim_lightning.evaluation.paper import AIM, paper_row
from aim_lightning.evaluation.record import over_seeds, write_record
from aim_lightning.evaluation.table import beside_paper
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import say
from aim_lightning.weights.fetch import PUBLISHED

# The paper's sampler settings are published nowhere: its ablation's guidance and the published decoder's positions.
SETTINGS = {"cfg_scale": 2.0, "position_offset": 1}


def run(document: Document, options: argparse.Namespace) -> int:
    """Evaluates and prints both rows."""
    quiet()
    row = paper_row(options.preset)
    if row is None:
        raise UserError(f"--preset is {options.preset!r}; the paper's table has {', '.join(one.model for one in AIM)}")
    if options.reference is None:
        raise UserError("reproduce needs --reference, ADM's VIRTUAL_imagenet256_labeled.npz (make adm-reference)")
    check_record_name(options.record)
    options.weights = options.weights or _weights(row.model)
    document.values["sampling"] = {**SETTINGS, **document.values["sampling"]}
    ranks, device = start(document)
    generator = make_generator(document, options, device)
    sampling = sampling_options(document)
    plan = make_plan(options, generator, sampling)
    judge = make_judge(document, options, ranks, device)
    evaluation = make_evaluation(document, options, generator, judge, keep_images=True)
    records = [evaluation.run(plan, replace(sampling, seed=seed)) for seed in seeds(options, sampling.seed)]
    record = over_seeds(records)
    if ranks.is_first:
        write_record(evaluation.root / f"{row.model}.json", record)
        keep(record, options.record)
    show(record)
    say("\n" + beside_paper(record, row))
    _say_protocol(record, options.num)
    say(f"results: {evaluation.folder(plan, sampling) / RECORD}; next: make table (after --record NAME)")
    return 0


def _weights(model: str) -> str:
    """The folder that `make weights-aim` fills.

    Raises:
        UserError: nothing was fetched.
    """
    if model not in PUBLISHED:
        raise UserError(f"{model} has no published weights; give --weights")
    folder = Path("weights") / PUBLISHED[model].folder
    if not folder.exists():
        raise UserError(f"{folder} does not exist; fetch it with make weights-aim MODEL={model}, or give --weights")
    return str(folder)


def _say_protocol(record: dict, num: int) -> None:
    """What keeps the two rows from being comparable."""
    features = record["protocol"]["features"]["network"]
    if not any(name.startswith("fid_") for name in record["metrics"]):
        say(f"these are distances on {features}, no FID: they compare with no paper")
    if num < 50_000:
        say(f"{num:,} samples in place of 50,000: FID is biased upwards, compare it with none")
