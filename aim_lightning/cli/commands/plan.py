"""`aim-lightning plan`: resources that a training will need, before it is submitted."""

import argparse

from aim_lightning.cli.common_options import number, option
from aim_lightning.cli.config import Config

HELP = "estimate memory, time, disk and the requeue window of a training"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    devices = "number of all devices (default: trainer.devices x num_nodes)"
    parser.add_argument("--devices", type=number(int, 1), help=devices)
    rate = "images per second on all devices; with it nothing is measured"
    parser.add_argument("--images_per_s", type=number(float, above=True), metavar="NUMBER", help=rate)
    parser.add_argument("--steps", **option("steps to measure on one device, 0 = none", 8, type=number(int)))
    parser.add_argument("--rows", type=number(int, 1), help="training images, if the data do not exist yet")
    views = "views per image of shards that do not exist yet"
    parser.add_argument("--views", **option(views, 1, type=number(int, 1)))


def run(config: Config, options: argparse.Namespace) -> int:
    """Print the estimate and return 0."""
    from aim_lightning.cli.build.trainer_cli import quiet
    from aim_lightning.cli.plan.report import plan_lines

    quiet()
    lines = plan_lines(config, options)
    print(f"plan of {config.run_directory.path}")
    for name, text in lines:
        print(f"  {name:22s}{text}")
    return 0
