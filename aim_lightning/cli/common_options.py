"""Option types, options that several commands share, and the choice of classes."""

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aim_lightning.utils.errors import UserError, suggest
from aim_lightning.utils.ranges import Range

DEFAULT_CLASSES = 10
SOURCE = "weights file (.safetensors, .pt, .bin, .ckpt), run directory or Hugging Face directory"


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line instead of a usage text."""

    def error(self, message: str) -> None:
        """Raise the error as a UserError; those of `number` contain their fix."""
        # argparse writes `argument --num: is 0; …`; the text of `number` continues the option's name.
        fact = re.sub(r"^argument (\S+): (?=is )", r"\1 ", message)
        unknown = re.match(r"unrecognized arguments: (--\w+)", message)
        hint = suggest(unknown[1], [*self._option_string_actions, "--config"]) if unknown else ""
        raise UserError(f"command line: {fact}{hint or (f'; see {self.prog} --help' if fact == message else '')}")


def boolean(text: str) -> bool:
    """Parse `true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def file_name(text: str) -> str:
    """Return a plain name for a file or a directory."""
    if Path(text).name != text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"is {text!r}; give a plain name, without directories")
    return text


def option(text: str, default: Any = None, **arguments: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option whose help ends with its default.

    Args:
        text: help without the default.
        default: value without the option; None is not shown.
        **arguments: further arguments, such as `type`.
    """
    shown = str(default).lower() if isinstance(default, bool) else default
    return {"default": default, "help": text if default is None else f"{text} (default: {shown})", **arguments}


def flag(text: str, default: bool | None = False) -> dict[str, Any]:
    """Return the arguments of `add_argument` for an option that is true, false, or true without a value."""
    return option(text, default, type=boolean, nargs="?", const=True, metavar="BOOL")


def number(kind: type, low: float = 0, high: float = math.inf, **limits: bool) -> Callable[[str], Any]:
    """Return the type of an option that is a finite number.

    Args:
        kind: int or float.
        low: smallest number.
        high: largest number.
        **limits: `above` and `below` of `Range`, which exclude `low` and `high`.
    """
    allowed = Range(low, high, **limits)

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # in no range
        if not allowed.contains(value):
            words = f"a whole number, {allowed}" if kind is int else f"a number, {allowed}"
            raise argparse.ArgumentTypeError(f"is {text}; it must be {words}")
        return value

    return parse


def numbers(text: str) -> tuple[float, ...]:
    """Parse finite numbers with commas between them."""
    try:
        return tuple(number(float, -math.inf)(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be finite numbers such as 1.1,1.05") from None


_REFERENCES = ".npz (ADM's, or arr_0), images, class directories, shards, ImageNet's .tar (default: training images)"
# Name of an option -> its arguments of `add_argument`.
SHARED = {
    "raw": flag("use the trained weights instead of the averaged ones (EMA)"),
    "allow_changes": flag("continue a run although its configuration changed"),
    "allow_untrained_guidance": flag("sample with guidance from a network trained with label_dropout 0 or 1"),
    "on_error": option("error stops at an unreadable image, skip lists it", "error", choices=("error", "skip")),
    "num": option("images to generate", 50000, type=number(int, 1)),
    "reference": option(_REFERENCES, metavar="PATH"),
    "fdr": option("held-out real images for FDr: `val` (of the experiment), or as --reference", metavar="PATH"),
    "more_features": option("YAML files with further feature networks", nargs="+", metavar="FILE"),
    "splitting": option("splits of the Inception Score", "adm", choices=("adm", "torch_fidelity")),
    "feature_batch": option("batch size of the feature network, images", 250, type=number(int, 1)),
    "cache": option("directory that caches reference statistics", ".cache/reference", metavar="DIR"),
    "seeds": option("number of sample sets; their seeds count up from sampling.seed", 1, type=number(int, 1, 10_000)),
    "record": option("also write experiments/results/NAME.json for `make table`", metavar="NAME", type=file_name),
    "checkpoint": option("checkpoint to use instead of the newest one of the run", metavar="FILE"),
    "weights": option("published weights, directory, file or hub id, instead of a run", metavar="SOURCE"),
    "classes": option('only these classes, "sneaker,bag" (default: all, balanced)', metavar="NAMES"),
    "labels": option("file with one class number per line, one line per image; also sets --num", metavar="FILE"),
}
# Options of every command that scores samples, and of those that take any checkpoint or published weights.
SCORING = ("num", "reference", "fdr", "more_features", "splitting", "feature_batch", "cache")
GENERATING = (*SCORING, "raw", "allow_untrained_guidance", "checkpoint", "weights", "classes", "labels", "seeds")


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options of `SHARED` by name."""
    for name in names:
        parser.add_argument(f"--{name}", **SHARED[name])


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE and --raw."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    add_shared(parser, "raw")


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
