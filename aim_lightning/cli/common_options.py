"""Option types and options that several commands share."""

import argparse
from collections import Counter

from aim_lightning.utils.errors import UserError

DEFAULT_CLASSES = 10
SOURCE = "weights file (.safetensors, .pt, .bin, .ckpt), run directory or Hugging Face directory"


def boolean(text: str) -> bool:
    """Parse `true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1.1,1.05") from None


def add_raw(parser: argparse.ArgumentParser) -> None:
    """Add the option --raw to a parser."""
    text = "use the trained weights instead of the averaged ones (EMA; default: false)"
    parser.add_argument("--raw", type=boolean, default=False, metavar="BOOL", help=text)


def add_untrained_guidance(parser: argparse.ArgumentParser) -> None:
    """Add the option --allow_untrained_guidance to a parser."""
    text = "sample with guidance from a network trained with label_dropout 0 or 1 (default: false)"
    parser.add_argument("--allow_untrained_guidance", action="store_true", help=text)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE and --raw."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    add_raw(parser)


def add_on_error(parser: argparse.ArgumentParser) -> None:
    """Add the option --on_error to a parser."""
    text = "action at an unreadable image: error stops, skip leaves it out and lists it (default: error)"
    parser.add_argument("--on_error", choices=("error", "skip"), default="error", help=text)


def add_allow_changes(parser: argparse.ArgumentParser) -> None:
    """Add the option --allow_changes to a parser."""
    text = "continue a run although its configuration changed (default: false)"
    parser.add_argument("--allow_changes", metavar="BOOL", type=boolean, default=False, help=text)


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Add the options of everything that computes scores of samples."""
    parser.add_argument("--num", type=int, default=50000, help="images to generate (default: 50000)")
    reference = ".npz (ADM's, or arr_0), images, class directories, shards, ImageNet's .tar (default: training images)"
    parser.add_argument("--reference", metavar="PATH", help=reference)
    splitting = "splits of the Inception Score (default: adm)"
    parser.add_argument("--splitting", choices=("adm", "torch_fidelity"), default="adm", help=splitting)
    batch = "batch size of the feature network, images (default: 250)"
    parser.add_argument("--feature_batch", type=int, default=250, help=batch)
    cache = "directory that caches reference statistics (default: .cache/reference)"
    parser.add_argument("--cache", metavar="DIR", default=".cache/reference", help=cache)


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Add the option --seeds to a parser."""
    seeds = "number of sample sets; their seeds count up from sampling.seed (default: 1)"
    parser.add_argument("--seeds", type=int, default=1, help=seeds)


def add_record(parser: argparse.ArgumentParser) -> None:
    """Add the option --record to a parser."""
    text = "also write experiments/results/NAME.json for `make table`"
    parser.add_argument("--record", metavar="NAME", help=text)


def add_generating(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that generate samples of any checkpoint or published weights and score them."""
    add_scoring(parser)
    add_raw(parser)
    add_untrained_guidance(parser)
    parser.add_argument("--checkpoint", metavar="FILE", help="checkpoint to use instead of the newest one of the run")
    weights = "published weights, directory, file or hub id, instead of a run"
    parser.add_argument("--weights", metavar="SOURCE", help=weights)
    parser.add_argument("--classes", metavar="NAMES", help='only these classes, "sneaker,bag" (default: all, balanced)')
    labels = "file with one class number per line, one line per image; also sets --num"
    parser.add_argument("--labels", metavar="FILE", help=labels)
    add_seeds(parser)


def choose_classes(text: str | None, class_names: list[str]) -> list[int]:
    """Return the labels for --classes: "sneaker,bag", "7,8" or "tench, goldfish"; the first ten without it.

    A name may contain commas, as ImageNet's do ("tench, Tinca tinca"). It is found as a whole, and by each of its parts
    that no other class has.

    Raises:
        UserError: a class does not exist.
    """
    if text is None:
        return list(range(min(len(class_names), DEFAULT_CLASSES)))
    by_name, labels, parts = _labels_by_name(class_names), [], _parts(text)
    while parts:
        # The longest name first: a part of it may be the name of another class.
        lengths = (count for count in range(len(parts), 0, -1) if ", ".join(parts[:count]) in by_name)
        if (count := next(lengths, None)) is None:
            shown = "; ".join(class_names[:12]) + ("; …" if len(class_names) > 12 else "")
            raise UserError(f"--classes: there is no class {parts[0]!r}; classes are {shown}")
        labels.append(by_name[", ".join(parts[:count])])
        parts = parts[count:]
    return labels


def _labels_by_name(class_names: list[str]) -> dict[str, int]:
    """Return labels by part of a name that only one class has, by number, and by full name, which wins."""
    names = [_parts(name) for name in class_names]
    counts = Counter(part for parts in names for part in set(parts))
    unique = {part: label for label, parts in enumerate(names) for part in parts if counts[part] == 1}
    numbers = {str(label): label for label in range(len(names))}
    return unique | numbers | {", ".join(parts): label for label, parts in enumerate(names)}


def _parts(text: str) -> list[str]:
    return [" ".join(part.lower().split()) for part in text.split(",")]
