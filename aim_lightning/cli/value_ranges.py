"""Ranges of options that libraries and constructors would accept unchecked. Imports no torch."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aim_lightning.config.compose import ComposedConfig, is_class
from aim_lightning.config.yaml import inline
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.ranges import Range


@dataclass(frozen=True)
class Share:
    """Range of an option that is a share of an epoch as a float, and a number of batches as an int.

    Args:
        low: smallest int; 0 also allows the share 0.
    """

    low: int

    def contains(self, value: float) -> bool:
        """Return True for a share or a number of batches in the range."""
        return (Range(0, 1, above=self.low > 0) if isinstance(value, float) else Range(self.low)).contains(value)

    def __str__(self) -> str:
        return f"a whole number, {self.low} or more, or a share of at most 1.0"


@dataclass(frozen=True)
class Choice:
    """Texts that an option accepts, and the reason, which follows them in errors."""

    names: tuple[str, ...]
    reason: str = ""

    def contains(self, value: Any) -> bool:
        """Return True for one of the texts."""
        return value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}{self.reason}"


Allowed = Mapping[str, Range | Share | Choice]
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "single_device")
SEED, CLIPPING, NO_LIMIT = Range(0, 2**32 - 1), Range(note=" (0 = no clipping)"), Range(-1, note=" (-1 = no limit)")
# Lightning checks some of these in the middle of training, and passes the others to torch.
TRAINER: Allowed = {
    "strategy": Choice(STRATEGIES, "; other strategies cannot resume at the exact step"),
    "accelerator": Choice(("auto", "cpu", "gpu", "cuda", "mps")),
    "max_epochs": NO_LIMIT,
    "max_steps": NO_LIMIT,
    "gradient_clip_val": CLIPPING,
    "val_check_interval": Share(1),
    **dict.fromkeys(("limit_val_batches", "limit_test_batches", "limit_predict_batches"), Share(0)),
    **dict.fromkeys(("devices", "num_sanity_val_steps"), Range(-1, note=" (-1 = all)")),
    **dict.fromkeys(("num_nodes", "check_val_every_n_epoch", "log_every_n_steps"), Range(1)),
    **dict.fromkeys(("min_epochs", "min_steps", "reload_dataloaders_every_n_epochs"), Range()),
}
_AT_LEAST = {
    0: "num_workers pad every_n_validations every_n_steps every_n_epochs",
    1: "global_batch_size max_device_batch_size val_batch_size batch_size window_rows rows_per_shard image_size resize "
    "max_pixels classes columns num_images",
    2: "num_samples",
}
# Arguments of this package's classes by name. Arguments that their constructors check need no entry.
ARGUMENTS: Allowed = {name: Range(low) for low, names in _AT_LEAST.items() for name in names.split()}
ARGUMENTS |= {"seed": SEED, "gradient_clip": CLIPPING}
SECTIONS: dict[str, Allowed] = {"trainer": TRAINER, "images": ARGUMENTS, "tokenize": ARGUMENTS}


def check_ranges(config: ComposedConfig, sections: Iterable[str]) -> None:
    """Check every number of a configuration: finite, and within the range of its option.

    Args:
        config: its types are checked already.
        sections: names of the sections of the command.

    Raises:
        UserError: a value that is not finite or out of range, with the file that sets it.
    """
    for name in sections:
        ranges = SECTIONS.get(name, {"seed_everything": SEED})
        for key, allowed, value in _values(config.values.get(name), name, ranges):
            if not _is_valid(value, allowed):
                limits = allowed or "a finite number"
                raise UserError(f"{config.origin(key)}: {key} is {inline(value)}; it must be {limits}")


def _is_valid(value: Any, allowed: Range | Share | Choice | None) -> bool:
    """Return True for an allowed value; null and texts such as `auto` are valid for every number."""
    if isinstance(value, str) and isinstance(allowed, Choice):
        return allowed.contains(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    is_finite = isinstance(value, int) or math.isfinite(value)  # isfinite fails for integers beyond float
    return is_finite and (allowed is None or allowed.contains(value))


def _values(value: Any, key: str, ranges: Allowed) -> Iterator[tuple[str, Range | Share | Choice | None, Any]]:
    """Yield dotted key, allowed values and value of everything that is not a mapping or a list."""
    if is_class(value):
        ranges = ARGUMENTS if str(value["class_path"]).startswith("aim_lightning.") else {}
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _values(item, f"{key}.{name}", ranges)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _values(item, f"{key}[{number}]", {})
    else:
        yield key, ranges.get(key.rpartition(".")[2]), value
