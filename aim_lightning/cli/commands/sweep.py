"""`aim-lightning sweep`: evaluate over a grid of sampling options."""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from aim_lightning.cli.build.evaluation_setup import (
    make_evaluation,
    make_generator,
    make_judge,
    make_plan,
    refuse,
    sampling_options,
    seeds,
    start,
)
from aim_lightning.cli.build.trainer_cli import quiet
from aim_lightning.cli.commands.evaluate import WITHOUT_RUN, check_record_name
from aim_lightning.config import Document
from aim_lightning.evaluation.report.plots import write_plots
from aim_lightning.evaluation.report.sweep import (
    PROTOCOL,
    TABLE,
    grid_points,
    label,
    parse_grid,
    sweep_protocol,
    write_csv,
    write_hparams,
)
from aim_lightning.evaluation.score_record import over_seeds, short_key
from aim_lightning.utils.files import atomic_folder, write_json
from aim_lightning.utils.process import say

SWEEPS = Path("experiments/sweeps")


def run(document: Document, options: argparse.Namespace) -> int:
    """A folder with results.csv, plots and TensorBoard hparams; finished points are not drawn again."""
    quiet()
    refuse(options, "--weights", WITHOUT_RUN)
    check_record_name(options.record, SWEEPS)
    grid, base = parse_grid(options.grid), sampling_options(document)
    points, names = grid_points(grid, base), list(grid)
    ranks, device = start(document)
    generator = make_generator(document, options, device)
    plan = make_plan(options, generator, base)
    judge = make_judge(document, options, ranks, device)
    evaluation = make_evaluation(document, options, generator, judge, options.keep_images)
    # Every point is resolved, so that what this machine or network cannot do is told before the first is drawn.
    sets = ranks.each(lambda: [evaluation.folder(plan, point).name for point in points])
    identity = [sets, seeds(options, base.seed), judge.protocol(len(plan))]
    folder = evaluation.root.parent / "sweeps" / (options.name or _name(list(grid), identity))
    records = []
    for number, point in enumerate(points, 1):
        say(f"[{number}/{len(points)}] {label(point, names)}")
        several = [evaluation.run(plan, replace(point, seed=seed)) for seed in seeds(options, point.seed)]
        records.append(over_seeds(several))
        if ranks.is_first:
            write_csv(folder / TABLE, names, points[:number], records)
            write_json(folder / PROTOCOL, sweep_protocol(names, points, records))
    if ranks.is_first:
        plots = _finish(folder, names, points, records)
        _keep([folder / TABLE, folder / PROTOCOL, *plots], options.record)
    return 0


def _keep(files: list[Path], name: str | None) -> None:
    """Copies for `make table`."""
    if name:
        with atomic_folder(SWEEPS / name) as folder:
            for file in files:
                shutil.copyfile(file, folder / file.name)
        say(f"recorded in {SWEEPS / name}; next: make table")


def _finish(folder: Path, names: list[str], points: list, records: list[dict]) -> list[Path]:
    """Returns the plots."""
    write_hparams(folder, names, points, records)
    first = next(iter(records[0]["metrics"]))
    best = min(range(len(points)), key=lambda i: records[i]["metrics"][first])
    say(f"lowest {first}: {records[best]['metrics'][first]:.4f} at {label(points[best], names)}")
    say(f"results: {folder / TABLE}; hparams: tensorboard --logdir {folder / 'hparams'}")
    plots = write_plots(folder, names, points, records)
    say(f"plots: {', '.join(map(str, plots))}")
    return plots


def _name(options: list[str], identity: list) -> str:
    """The options that vary, and a hash of everything that the numbers depend on: another sweep has another folder."""
    return f"{'-'.join(options)}-{short_key(identity)}"
