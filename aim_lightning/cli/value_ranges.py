"""Ranges of options that libraries and constructors would accept unchecked. Imports no torch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aim_lightning.config.check import ClassSection
from aim_lightning.config.compose import ComposedConfig
from aim_lightning.config.yaml import inline
from aim_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Range:
    """Range of a number; null and texts such as `auto` are always allowed.

    Args:
        low: smallest value.
        high: largest value.
        exclusive: True if `low` itself is not allowed.
        note: text after the range in errors.
    """

    low: float
    high: float = math.inf
    exclusive: bool = False
    note: str = ""

    def contains(self, value: Any) -> bool:
        """Return True for a value in the range, and for everything that is not a number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return self.low <= value <= self.high and not (self.exclusive and value == self.low)

    def __str__(self) -> str:
        if self.high < math.inf:
            words = f"above {self.low} and at most {self.high}" if self.exclusive else f"from {self.low} to {self.high}"
        else:
            words = f"above {self.low}" if self.exclusive else f"{self.low} or more"
        return words + self.note


@dataclass(frozen=True)
class Share:
    """Range of an option that is a share of an epoch as a float, and a number of batches as an int.

    Args:
        low: smallest int; 0 also allows the share 0.
    """

    low: int

    def contains(self, value: Any) -> bool:
        """Return True for a value in the range, and for everything that is not a number."""
        whole, share = Range(self.low), Range(0, 1, exclusive=self.low > 0)
        return (share if isinstance(value, float) else whole).contains(value)

    def __str__(self) -> str:
        return f"a whole number, {self.low} or more, or a share of at most 1.0"


@dataclass(frozen=True)
class Choice:
    """Texts that an option accepts.

    Args:
        names: the texts.
        reason: text after them in errors.
    """

    names: tuple[str, ...]
    reason: str

    def contains(self, value: Any) -> bool:
        """Return True for one of the texts, and for everything that is not a text."""
        return not isinstance(value, str) or value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}{self.reason}"


POSITIVE, NOT_NEGATIVE, CLIPPING = Range(1), Range(0), Range(0, note=" (0 = no clipping)")
SEED = Range(0, 2**32 - 1)
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "single_device")
# Class and argument -> allowed values. Arguments that their constructors check are not repeated here.
RANGES: dict[str, Range | Share | Choice] = {
    "seed_everything": SEED,
    # Lightning checks some of these in the middle of training, and passes the others to torch.
    "Trainer.strategy": Choice(STRATEGIES, "; other strategies cannot resume at the exact step"),
    "Trainer.accelerator": Choice(("auto", "cpu", "gpu", "cuda", "mps"), ""),
    "Trainer.devices": Range(-1, note=" (-1 = all)"),
    "Trainer.num_nodes": POSITIVE,
    "Trainer.max_epochs": Range(-1, note=" (-1 = no limit)"),
    "Trainer.max_steps": Range(-1, note=" (-1 = no limit)"),
    "Trainer.min_epochs": NOT_NEGATIVE,
    "Trainer.min_steps": NOT_NEGATIVE,
    "Trainer.limit_val_batches": Share(0),
    "Trainer.limit_test_batches": Share(0),
    "Trainer.limit_predict_batches": Share(0),
    "Trainer.val_check_interval": Share(1),
    "Trainer.check_val_every_n_epoch": POSITIVE,
    "Trainer.num_sanity_val_steps": Range(-1, note=" (-1 = all)"),
    "Trainer.log_every_n_steps": POSITIVE,
    "Trainer.gradient_clip_val": CLIPPING,
    "Trainer.reload_dataloaders_every_n_epochs": NOT_NEGATIVE,
    "AiMModule.global_batch_size": POSITIVE,
    "AiMModule.seed": SEED,
    "TokenizerModule.global_batch_size": POSITIVE,
    "TokenizerModule.seed": SEED,
    "TokenizerModule.gradient_clip": CLIPPING,
    "TokenizerModule.adversarial.gradient_clip": CLIPPING,
    "TokenDataModule.global_batch_size": POSITIVE,
    "TokenDataModule.max_device_batch_size": POSITIVE,
    "TokenDataModule.val_batch_size": POSITIVE,
    "TokenDataModule.num_workers": NOT_NEGATIVE,
    "TokenDataModule.window_rows": POSITIVE,
    "TokenDataModule.seed": SEED,
    "ImageDataModule.global_batch_size": POSITIVE,
    "ImageDataModule.max_device_batch_size": POSITIVE,
    "ImageDataModule.val_batch_size": POSITIVE,
    "ImageDataModule.num_workers": NOT_NEGATIVE,
    "ImageDataModule.seed": SEED,
    "Images.image_size": POSITIVE,
    "Images.resize": POSITIVE,
    "Images.pad": NOT_NEGATIVE,
    "SampleGrid.classes": POSITIVE,
    "SampleGrid.columns": POSITIVE,
    "Reconstructions.num_images": POSITIVE,
    "SampleMetrics.num_samples": Range(2),
    "SampleMetrics.every_n_validations": NOT_NEGATIVE,
    "SampleMetrics.batch_size": POSITIVE,
    "ReconstructionMetrics.every_n_validations": NOT_NEGATIVE,
    "ReconstructionMetrics.batch_size": POSITIVE,
    "TrainingEvaluation.every_n_steps": NOT_NEGATIVE,
    "TrainingEvaluation.every_n_epochs": NOT_NEGATIVE,
}


def check_ranges(config: ComposedConfig, sections: Mapping[str, Any]) -> None:
    """Check every number of a configuration: finite, and within the range of its option.

    Args:
        config: its types are checked already.
        sections: the sections of the command.

    Raises:
        UserError: a value that is not finite or out of range, with the file that sets it.
    """
    for name, section in sections.items():
        fixed = section.fixed.rpartition(".")[2] if isinstance(section, ClassSection) and section.fixed else name
        for key, option, value in _leaves(config.values.get(name), name, fixed):
            allowed = RANGES.get(option)
            if isinstance(value, float) and not math.isfinite(value):
                fact = f"is {inline(value)}; it must be {allowed or 'a finite number'}"
            elif allowed is not None and not allowed.contains(value):
                fact = f"is {inline(value)}; it must be {allowed}"
            else:
                continue
            raise UserError(f"{config.origin(key)}: {key} {fact}")


def _leaves(value: Any, key: str, option: str) -> Iterator[tuple[str, str, Any]]:
    """Yield dotted key, class with argument, and value of everything that is no mapping."""
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        arguments = value.get("init_args") or {}
        yield from _leaves(arguments, f"{key}.init_args", value["class_path"].rpartition(".")[2])
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}", f"{option}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{key}[{number}]", f"{option}[]")
    yield key, option, value
