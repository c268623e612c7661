"""The commands: what each is for and which options of its own it takes. Light: nothing heavy is imported here."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from aim_lightning.config.sections import ClassSection, Leaf, NamedSection

TRAINER_GIVEN = (
    "callbacks",
    "logger",
    "default_root_dir",
    "use_distributed_sampler",
    "accumulate_grad_batches",
)

SECTIONS = {
    "experiment": Leaf("str", "name of the experiment; results go to runs/EXPERIMENT/RUN", required=True),
    "run": Leaf("str", "name of the run"),
    "runs_root": Leaf("str", "folder of all runs"),
    "seed_everything": Leaf("int", "fixes the whole run"),
    "model": ClassSection(description="what is trained, and how", required=True),
    "data": ClassSection(description="what it is trained on", required=True),
    "pictures": ClassSection(
        fixed="aim_lightning.data.images.pictures.Pictures", description="the real pictures and their size"
    ),
    "tokenizer": Leaf("str | None", "run directory or checkpoint file of the tokenizer"),
    "features": ClassSection(description="feature network of the Fréchet distance"),
    "sampling": ClassSection(
        fixed="aim_lightning.sampling.options.SamplingOptions",
        description="guidance, temperature, top-k, top-p",
    ),
    "callbacks": NamedSection(description="named callbacks, --callbacks.NAME.OPTION; null switches one off"),
    "logger": NamedSection(provided=("save_dir", "name", "version"), description="named loggers, likewise"),
    "trainer": ClassSection(
        fixed="lightning.pytorch.Trainer",
        provided=TRAINER_GIVEN,
        description="options of Lightning's Trainer",
    ),
}


@dataclass(frozen=True)
class Command:
    """One command of `aim-lightning`."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None] | None = None
    needs_config: bool = True


def _fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow_changes",
        metavar="BOOL",
        type=_boolean,
        default=False,
        help="continue a run although its configuration changed (default: false)",
    )


def _sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes", metavar="NAMES", help='classes by name or number, "sneaker,bag" (default: the first 10)'
    )
    parser.add_argument("--num", type=int, default=8, help="pictures a class (default: 8)")
    parser.add_argument("--out", help="folder for the pictures (default: runs/EXPERIMENT/RUN/samples)")
    parser.add_argument("--raw", type=_boolean, default=False, metavar="BOOL", help="weights without EMA")


def _tokenize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--views", default="center", help="center, or center_flip for two views a picture")
    parser.add_argument("--rows_per_shard", type=int, default=10000, help="pictures a shard (default: 10000)")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures encoded at once (default: 64)")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


COMMANDS = {
    "fit": Command("train, or continue an unfinished run", _fit),
    "validate": Command("score the newest checkpoint (EMA weights) and write results.json"),
    "sample": Command("draw pictures from a trained run", _sample),
    "tokenize": Command("turn pictures into token shards with a trained tokenizer", _tokenize),
    "config": Command("print the composed configuration"),
    "doctor": Command("print versions, devices, and which kernels can be used", needs_config=False),
}
