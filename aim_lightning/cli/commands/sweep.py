"""`aim-lightning sweep`: evaluate over a grid of sampling options."""

import argparse
import shutil
from pathlib import Path

from aim_lightning.cli.commands.evaluate import OF_RUN
from aim_lightning.cli.common_options import GENERATING, add_shared, file_name, flag
from aim_lightning.cli.config import Config
from aim_lightning.utils.files import atomic_directory, write_json
from aim_lightning.utils.logging import log, log_next

HELP = "evaluate over a grid of sampling options"
WITHOUT_RUN = ("weights",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_shared(parser, *GENERATING)
    parser.add_argument("--grid", required=True, help='sampling options, "cfg_scale=1,1.5 top_k=0,600"')
    parser.add_argument("--name", type=file_name, help="name of the sweep's directory (default: made from the grid)")
    record = "also copy table, plots and protocol to experiments/sweeps/NAME/ for `make table`"
    parser.add_argument("--record", metavar="NAME", type=file_name, help=record)
    parser.add_argument("--keep_images", **flag("write samples.npz files"))


SWEEPS = Path("experiments/sweeps")
HPARAMS = Path(".cache/hparams")


def run(config: Config, options: argparse.Namespace) -> int:
    """Write results.csv, plots, a TensorBoard run and hparams of a sweep; finished points are not computed again."""
    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.evaluation.report import plots, sweep
    from aim_lightning.evaluation.score_record import describe_reference
    from aim_lightning.utils.short_key import short_key

    setup.refuse(options, "--weights", OF_RUN)
    grid = sweep.parse_grid(options.grid)
    points, names = sweep.grid_points(grid, config.sampling), list(grid)
    evaluation, plan = setup.prepare(config, options, setup.start(config), options.keep_images)
    ranks = evaluation.scorer.ranks
    # All points are resolved first: an option that this machine does not support is reported before sampling.
    sets = ranks.run_on_all(lambda: [evaluation.directory(plan, point).name for point in points])
    identity = [sets, setup.seeds(options, config.sampling.seed), evaluation.scorer.protocol(len(plan))]
    directory = evaluation.root.parent / "sweeps" / (options.name or f"{'-'.join(names)}-{short_key(identity)}")
    records = []
    for number, point in enumerate(points, 1):
        log(f"[{number}/{len(points)}] {sweep.label(point, names)}")
        records.append(setup.run_seeds(evaluation, plan, options, point))
        if ranks.is_rank_zero:
            sweep.write_csv(directory / sweep.TABLE, names, points[:number], records)
            write_json(directory / sweep.PROTOCOL, sweep.sweep_protocol(names, points, records))
            write_json(directory / sweep.POINTS, records)
    if not ranks.is_rank_zero:
        return 0
    files = [directory / sweep.TABLE, directory / sweep.PROTOCOL]
    # Each session is a run: outside the directory of runs, sessions do not fill TensorBoard's list of runs.
    hparams = HPARAMS.joinpath(*directory.parts[-4:])
    sweep.write_hparams(hparams, names, points, records)
    first = next(iter(records[0]["metrics"]))
    best, *ties = sweep.lowest_points(records, first)
    noise = f"; within its noise: {', '.join(sweep.label(points[i], names) for i in ties)}" if ties else ""
    against = f", against {describe_reference(records[0]['protocol']['reference'])}" if options.reference else ""
    log(f"lowest {first}: {records[best]['metrics'][first]:z.4f} at {sweep.label(points[best], names)}{against}{noise}")
    log(f"results: {files[0]}; hparams: tensorboard --logdir {hparams}")
    files += plots.write_plots(directory, names, points, records)
    sweep.write_page(directory, files[2:])
    log(f"plots: {', '.join(map(str, files[2:]))}")
    if options.record:
        with atomic_directory(SWEEPS / options.record) as kept:
            for file in files:
                shutil.copyfile(file, kept / file.name)
        log(f"recorded in {SWEEPS / options.record}")
        log_next("make table")
    return 0
