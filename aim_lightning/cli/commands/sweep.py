"""`aim-lightning sweep`: evaluate over a grid of sampling options."""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from aim_lightning.cli.commands.evaluate import WITHOUT_RUN, check_record_name
from aim_lightning.cli.common_options import add_generating, boolean
from aim_lightning.cli.config import Config
from aim_lightning.utils.files import atomic_directory, write_json
from aim_lightning.utils.logging import log

HELP = "evaluate over a grid of sampling options"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_generating(parser)
    parser.add_argument("--grid", required=True, help='sampling options, "cfg_scale=1,1.5 top_k=0,600"')
    parser.add_argument("--name", help="name of the sweep's directory (default: made from the grid)")
    record = "also copy table, plots and protocol to experiments/sweeps/NAME/ for `make table`"
    parser.add_argument("--record", metavar="NAME", help=record)
    parser.add_argument("--keep_images", type=boolean, default=False, metavar="BOOL", help="write samples.npz files")


def without_run(options: argparse.Namespace) -> bool:
    """Return True if the samples come from published weights."""
    return bool(options.weights)


SWEEPS = Path("experiments/sweeps")


def run(document: Config, options: argparse.Namespace) -> int:
    """A directory with results.csv, plots and TensorBoard hparams; finished points are not drawn again."""
    from aim_lightning.cli.build.evaluation_setup import (
        make_evaluation,
        make_generator,
        make_plan,
        make_scorer,
        refuse,
        sampling_options,
        seeds,
        start,
    )
    from aim_lightning.cli.build.trainer_cli import quiet
    from aim_lightning.evaluation.report.sweep import (
        PROTOCOL,
        TABLE,
        grid_points,
        label,
        parse_grid,
        sweep_protocol,
        write_csv,
    )
    from aim_lightning.evaluation.score_record import over_seeds

    quiet()
    refuse(options, "--weights", WITHOUT_RUN)
    check_record_name(options.record, SWEEPS)
    grid, base = parse_grid(options.grid), sampling_options(document)
    points, names = grid_points(grid, base), list(grid)
    ranks, device = start(document)
    generator = make_generator(document, options, device)
    plan = make_plan(options, generator, base)
    scorer = make_scorer(document, options, ranks, device)
    evaluation = make_evaluation(document, options, generator, scorer, options.keep_images)
    # Every point is resolved, so that what this machine or network cannot do is told before the first is drawn.
    sets = ranks.run_on_all(lambda: [evaluation.directory(plan, point).name for point in points])
    identity = [sets, seeds(options, base.seed), scorer.protocol(len(plan))]
    directory = evaluation.root.parent / "sweeps" / (options.name or _name(list(grid), identity))
    records = []
    for number, point in enumerate(points, 1):
        log(f"[{number}/{len(points)}] {label(point, names)}")
        several = [evaluation.run(plan, replace(point, seed=seed)) for seed in seeds(options, point.seed)]
        records.append(over_seeds(several))
        if ranks.is_rank_zero:
            write_csv(directory / TABLE, names, points[:number], records)
            write_json(directory / PROTOCOL, sweep_protocol(names, points, records))
    if ranks.is_rank_zero:
        plots = _finish(directory, names, points, records)
        _keep([directory / TABLE, directory / PROTOCOL, *plots], options.record)
    return 0


def _keep(files: list[Path], name: str | None) -> None:
    """Copies for `make table`."""
    if name:
        with atomic_directory(SWEEPS / name) as directory:
            for file in files:
                shutil.copyfile(file, directory / file.name)
        log(f"recorded in {SWEEPS / name}; next: make table")


def _finish(directory: Path, names: list[str], points: list, records: list[dict]) -> list[Path]:
    """Returns the plots."""
    from aim_lightning.evaluation.report.plots import write_plots
    from aim_lightning.evaluation.report.sweep import TABLE, label, write_hparams

    write_hparams(directory, names, points, records)
    first = next(iter(records[0]["metrics"]))
    best = min(range(len(points)), key=lambda i: records[i]["metrics"][first])
    log(f"lowest {first}: {records[best]['metrics'][first]:z.4f} at {label(points[best], names)}")
    log(f"results: {directory / TABLE}; hparams: tensorboard --logdir {directory / 'hparams'}")
    plots = write_plots(directory, names, points, records)
    log(f"plots: {', '.join(map(str, plots))}")
    return plots


def _name(options: list[str], identity: list) -> str:
    """Return the directory name: the varied options and a hash of everything the numbers depend on."""
    from aim_lightning.evaluation.score_record import short_key

    return f"{'-'.join(options)}-{short_key(identity)}"
