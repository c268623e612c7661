"""The commands: what each is for and which options of its own it takes. Light: nothing heavy is imported here."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

from aim_lightning.cli.commands import download


@dataclass(frozen=True)
class Command:
    """One command of `aim-lightning`.

    Args:
        help: one line.
        add_options: its own options.
        usage: of a command without configuration, what follows its name; None = it takes a configuration.
    """

    help: str
    add_options: Callable[[argparse.ArgumentParser], None] | None = None
    needs_config: bool = True
    without_run: Callable[[argparse.Namespace], bool] = lambda options: False  # no experiment is needed then
    unused: tuple[str, ...] = ()  # sections that it can do without
    actions: "dict[str, Command]" = field(default_factory=dict)  # `aim-lightning COMMAND ACTION`


def _fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow_changes",
        metavar="BOOL",
        type=_boolean,
        default=False,
        help="continue a run although its configuration changed (default: false)",
    )


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, help="all devices together (default: trainer.devices x num_nodes)")
    rate = "images a second on all devices; given, nothing is measured"
    parser.add_argument("--images_per_s", type=float, metavar="NUMBER", help=rate)
    parser.add_argument("--steps", type=int, default=8, help="measured on one device, 0 = none (default: 8)")
    parser.add_argument("--rows", type=int, help="training images, where the data are not there yet")
    parser.add_argument("--views", type=int, default=1, help="of token shards that are not there yet (default: 1)")


def _sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes", metavar="NAMES", help='classes by name or number, "sneaker,bag" (default: the first 10)'
    )
    parser.add_argument("--num", type=int, default=8, help="images a class (default: 8)")
    parser.add_argument("--out", help="directory for the images (default: runs/EXPERIMENT/RUN/samples)")
    parser.add_argument("--raw", type=_boolean, default=False, metavar="BOOL", help="weights without EMA")
    untrained = "sample with guidance from a network trained with label_dropout 0 or 1 (default: false)"
    parser.add_argument("--allow_untrained_guidance", action="store_true", help=untrained)
    animated = "also write sampled.gif, in which the images appear row by row (default: false)"
    parser.add_argument("--animate", nargs="?", const=True, type=_boolean, default=False, metavar="BOOL", help=animated)


def _tokenize(parser: argparse.ArgumentParser) -> None:
    views = "stored versions of each training image: center, center_flip (2), or ten_crop (10 a crop range)"
    parser.add_argument("--views", default="center", help=f"{views} (default: center)")
    ranges = "of ten_crop: shorter sides to cut from, in image sizes; 1.1,1.05 gives 20 views (default: 1.1)"
    parser.add_argument("--crop_range", type=_numbers, metavar="NUMBERS", help=ranges)
    shards = "images a shard, the unit that a process takes (default: 10000)"
    parser.add_argument("--rows_per_shard", type=int, default=10000, help=shards)
    at_once = "images encoded at once (default: 64, 11 GiB for VQ-16 in float32); 256 is faster on a GPU with room"
    parser.add_argument("--batch_size", type=int, default=64, help=at_once)
    precision = "float32 (exact), tf32 or bf16; faster ones change some codes (default: float32)"
    parser.add_argument("--precision", default="float32", help=precision)
    fused = "fuse the encoder with torch.compile, a minute at the start (default: false)"
    parser.add_argument("--compile", type=_boolean, default=False, metavar="BOOL", help=fused)
    unreadable = "what an unreadable image does: error stops, skip leaves it out and lists it (default: error)"
    parser.add_argument("--on_error", default="error", help=unreadable)


def _paths(parser: argparse.ArgumentParser) -> None:
    paths = "token directories: one with train/ and val/, or one of those; merge takes several"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=paths)


def _verify(parser: argparse.ArgumentParser) -> None:
    _paths(parser)
    parser.add_argument(
        "--tokenizer", metavar="SOURCE", help="also compare the hash of these tokenizer weights (or .yaml)"
    )


def _preview(parser: argparse.ArgumentParser) -> None:
    _paths(parser)
    parser.add_argument(
        "--tokenizer", required=True, metavar="SOURCE", help="run, weights or .yaml of what decodes the codes"
    )
    parser.add_argument("--num", type=int, default=32, help="images, drawn at random (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--out", metavar="FILE", help="PNG file (default: PATH/preview.png)")


def _merge(parser: argparse.ArgumentParser) -> None:
    _paths(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the new token directory")


def _dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIRECTORY", help="images: DIRECTORY/CLASS_NAME/*.jpg, png and so on")
    parser.add_argument("name", metavar="NAME", help="name of the data set and of its experiments")
    size = "height and width that the networks see, pixels, a multiple of 4 (default: 64)"
    parser.add_argument("--image_size", type=int, default=64, help=size)
    share = "share of the images, by a hash of their file names, kept for validation (default: 0.1)"
    parser.add_argument("--val_fraction", type=float, default=0.1, help=share)
    unreadable = "what an unreadable image does: error stops, skip leaves it out and lists it (default: error)"
    parser.add_argument("--on_error", choices=("error", "skip"), default="error", help=unreadable)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1.1,1.05") from None


SPLITTINGS = ("adm", "torch_fidelity")


def _scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num", type=int, default=50000, help="images to draw (default: 50000)")
    parser.add_argument(
        "--reference",
        metavar="PATH",
        help=".npz (ADM's, or arr_0), images, class directories, shards or ImageNet's .tar (default: training images)",
    )
    parser.add_argument("--splitting", choices=SPLITTINGS, default="adm", help="of the Inception Score (default: adm)")
    parser.add_argument(
        "--feature_batch", type=int, default=250, help="images that the feature network sees at once (default: 250)"
    )
    parser.add_argument("--cache", metavar="DIR", default=".cache/reference", help="reference statistics are kept here")


def _drawing(parser: argparse.ArgumentParser) -> None:
    _scoring(parser)
    parser.add_argument("--raw", type=_boolean, default=False, metavar="BOOL", help="weights without EMA")
    parser.add_argument("--checkpoint", metavar="FILE", help="instead of the newest one of the run")
    parser.add_argument(
        "--weights", metavar="SOURCE", help="published weights, directory, file or hub id, in place of a run"
    )
    parser.add_argument("--classes", metavar="NAMES", help='only these, "sneaker,bag" (default: all, balanced)')
    parser.add_argument("--labels", metavar="FILE", help="one class number a line, one an image; sets --num too")
    parser.add_argument("--seeds", type=int, default=1, help="sets, seeds counted on from sampling.seed (default: 1)")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _drawing(parser)
    parser.add_argument("--samples", metavar="PATH", help="score this .npz (arr_0) or directory; no run is needed")
    parser.add_argument("--keep_images", type=_boolean, default=True, metavar="BOOL", help="write samples.npz")
    parser.add_argument("--out", metavar="DIR", help="directory for the results (default: below the run)")
    parser.add_argument("--record", metavar="NAME", help="also write experiments/results/NAME.json for `make table`")


def _sweep(parser: argparse.ArgumentParser) -> None:
    _drawing(parser)
    parser.add_argument("--grid", required=True, help='sampling options, "cfg_scale=1,1.5 top_k=0,600"')
    parser.add_argument("--name", help="of the sweep's directory (default: made from the grid)")
    record = "also copy table, plots and protocol to experiments/sweeps/NAME/ for `make table`"
    parser.add_argument("--record", metavar="NAME", help=record)
    parser.add_argument("--keep_images", type=_boolean, default=False, metavar="BOOL", help="write samples.npz files")


def _follow(parser: argparse.ArgumentParser) -> None:
    _scoring(parser)
    parser.add_argument("--raw", type=_boolean, default=False, metavar="BOOL", help="weights without EMA")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two looks (default: 30)")
    parser.add_argument("--patience", type=float, default=3600.0, help="seconds without news to stop (default: 3600)")


def _reproduce(parser: argparse.ArgumentParser) -> None:
    _scoring(parser)
    parser.add_argument("--preset", required=True, help="row of the paper's table: AiM-B, AiM-L, AiM-XL")
    parser.add_argument(
        "--weights", metavar="SOURCE", help="directory or hub id (default: weights/aim_b and so on, fetched)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="sets, seeds counted on from sampling.seed (default: 1)")
    parser.add_argument("--record", metavar="NAME", help="also write experiments/results/NAME.json for `make table`")


def _table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", metavar="DIR", default="experiments/results", help="directory of records")
    parser.add_argument("--sweeps", metavar="DIR", default="experiments/sweeps", help="directory of recorded sweeps")
    parser.add_argument("--out", metavar="FILE", default="experiments/README.md", help="the table")


SOURCE = "weights file (.safetensors, .pt, .bin, .ckpt), run directory or Hugging Face directory"


def _source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    parser.add_argument(
        "--raw", type=_boolean, default=False, metavar="BOOL", help="trained weights instead of averaged ones (EMA)"
    )


def _export(parser: argparse.ArgumentParser) -> None:
    _source(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for config.json and model.safetensors")
    parser.add_argument(
        "--tokenizer",
        metavar="SOURCE",
        help="tokenizer of an AiM, likewise (default: the one in SOURCE, or that its run names)",
    )


def _slurm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry", type=_boolean, default=False, metavar="BOOL", help="show the job script, submit nothing"
    )
    parser.add_argument("--seeds", metavar="LIST", help="an array, a run RUN-SEED each: 0-3 or 1,5,7")
    parser.add_argument("--sweep", metavar="FILE", help="an array, a run RUN-NUMBER for each line of options in FILE")
    parser.add_argument("--parallel", type=int, metavar="N", help="at most N tasks of an array at once")
    _fit(parser)
    parser.add_argument("--code", type=int, default=0, help="exit code of srun, for `ended`")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


COMMANDS = {
    "fit": Command("train, or continue an unfinished run", _fit),
    "validate": Command("score the newest checkpoint (EMA weights) and write results.json"),
    "sample": Command("draw images from a trained run", _sample),
    "tokenize": Command("turn images into token shards with a trained tokenizer", _tokenize, unused=("model",)),
    "evaluate": Command(
        "draw samples (or take given ones) and score them: FID, sFID, IS, KID, precision, recall",
        _evaluate,
        without_run=lambda options: bool(options.samples or options.weights),
    ),
    "sweep": Command(
        "evaluate over a grid of sampling options", _sweep, without_run=lambda options: bool(options.weights)
    ),
    "follow": Command("evaluate new checkpoints of a live run, beside it", _follow),
    "reproduce": Command(
        "published weights: samples, scores, a row beside the paper's", _reproduce, without_run=lambda options: True
    ),
    "table": Command("render experiments/README.md: our rows beside the paper's", _table, needs_config=False),
    "weights": Command(
        "bring weights in, take them out, look at them",
        needs_config=False,
        actions={
            "import": Command("make a run of published weights, for validate, sample and tokenize", _source),
            "export": Command("write a run or any other source in the published layout", _export, needs_config=False),
            "inspect": Command("print what a source holds and whether it fits", _source, needs_config=False),
        },
    ),
    "download": Command(download.HELP, download.add_options, needs_config=False),
    "shards": Command(
        "look into, check, preview or merge token shards",
        needs_config=False,
        actions={
            "info": Command("print what token directories hold", _paths, needs_config=False),
            "verify": Command("check everything, name every fault", _verify, needs_config=False),
            "preview": Command("decode some records into a grid of images", _preview, needs_config=False),
            "merge": Command("make one token directory of several", _merge, needs_config=False),
        },
    ),
    "dataset": Command("make shards and experiments from a directory of your own images", _dataset, needs_config=False),
    "plan": Command("estimate memory, time, disk and the requeue window of a training", _plan),
    "slurm": Command(
        "submit a run to SLURM, show or cancel its jobs",
        actions={
            "submit": Command("submit a job", _slurm),
            "status": Command("show the jobs of this run", _slurm),
            "cancel": Command("cancel them", _slurm),
            "started": Command("of job.sbatch itself: before srun", _slurm),
            "ended": Command("of job.sbatch itself: after srun", _slurm),
        },
    ),
    "config": Command("print the composed configuration"),
    "doctor": Command("print versions, devices, and which kernels can be used", needs_config=False),
}
