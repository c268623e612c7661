"""Read a suite: variations of one experiment, each trained with the same seeds."""

import itertools
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aim_lightning.cli.arguments import Arguments
from aim_lightning.cli.config import TEXTS, Config, read_and_check
from aim_lightning.config.compose import PREFIX
from aim_lightning.config.signature import fits, type_text
from aim_lightning.config.yaml import inline, read_mapping
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.errors import UserError, suggest

# Key of a suite -> type and default; None = required.
KEYS: dict[str, tuple[Any, Any]] = {
    "experiment": (str, None),
    "variations": (dict[str, dict[str, Any] | None], {"base": {}}),
    "grid": (dict[str, list[Any]], {}),
    "overrides": (dict[str, Any], {}),
    "seeds": (list[int], [0]),
    "evaluate": (dict[str, Any], {}),
    "guidance": (list[float], []),
    "power_law": (dict[str, list[str] | str], {}),
}
INCLUDE = "include"  # of a variation: files that follow the experiment's


@dataclass(frozen=True)
class SuiteRun:
    """One training of a suite.

    Args:
        variation: its name.
        arguments: files and overrides that every command on this run takes.
        config: composed from them.
        directory: of the run.
    """

    variation: str
    arguments: Arguments
    config: Config
    directory: RunDirectory

    def scales(self, guidance: list[float]) -> list[float]:
        """Return the suite's guidance of this run: 1 alone where the null class or all classes are untrained."""
        return [1.0] if guidance and self.config.init_args("model").get("label_dropout") in (0, 1) else guidance

    def words(self, command: str, *options: str) -> list[str]:
        """Return the arguments of `aim-lightning` for a command on this run."""
        return [command, *command_line(self.arguments), *options]


@dataclass(frozen=True)
class Suite:
    """A file of experiments/suites/.

    Args:
        path: of the file.
        variations: files and overrides by name, with the name of the run without its seed.
        seeds: values of seed_everything.
        evaluate: options of the command `evaluate`; without any, runs are not evaluated.
        guidance: values of sampling.cfg_scale that every run is evaluated with; empty = as configured.
        power_law: columns of the fits, a list `x` and a name `y`; empty = no fit.
    """

    path: Path
    variations: dict[str, Arguments]
    seeds: list[int]
    evaluate: dict[str, Any]
    guidance: list[float]
    power_law: dict[str, Any]

    def runs(self) -> list[SuiteRun]:
        """Compose and check the configuration of every run, named SUITE-VARIATION-SEED as in a SLURM array of seeds.

        Raises:
            UserError: an option is unknown or has a wrong value.
        """
        return [self._run(name, seed) for name in self.variations for seed in self.seeds]

    def _run(self, name: str, seed: int) -> SuiteRun:
        common = self.variations[name]
        changes = [("seed_everything", str(seed)), ("run", f"{dict(common.overrides)['run']}-{seed}")]
        arguments = Arguments(common.configs, [*common.overrides, *changes])
        try:
            config = read_and_check(arguments)
            return SuiteRun(name, arguments, config, config.run_directory)
        except UserError as error:
            raise UserError(f"{self.path}: variation {name}: {str(error).removeprefix('command line: ')}") from None


def command_line(arguments: Arguments) -> list[str]:
    """Return configuration files and overrides as words of a command line."""
    configs = [word for path in arguments.configs for word in ("--config", str(path))]
    return [*configs, *(f"--{key}={text}" for key, text in arguments.overrides)]


def read_suite(path: Path, common: Arguments) -> Suite:
    """Read a suite's file; its experiment and `include` are relative to it, as in an experiment.

    Args:
        path: of the file.
        common: files and overrides of the command line, which follow those of every variation.

    Raises:
        UserError: a key is unknown or has another type, or two variations have one name.
    """
    values = read_mapping(path, str(path))
    if unknown := next((key for key in values if key not in KEYS), None):
        hint = suggest(unknown, KEYS) or f"; use {', '.join(KEYS)}"
        raise UserError(f"{path}: {unknown}: unknown key{hint}")
    parts = {key: _part(path, values, key) for key in KEYS}
    seeds = parts["seeds"]  # `fits` accepts a quoted number in a list
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds is {inline(seeds)}; give different whole numbers")
    for key, value in {"variations": parts["variations"], **parts["grid"]}.items():
        if not value:
            raise UserError(f"{path}: {key} is empty; add a value, or remove the key")
    results = [parts[key] for key in ("evaluate", "guidance", "power_law")]
    variations: dict[str, Arguments] = {}
    for name, changes in parts["variations"].items():
        for suffix, point in _points(parts["grid"]):
            full = name + suffix
            if full in variations:
                raise UserError(f"{path}: variation {full} occurs twice; rename one, or remove a value of the grid")
            included, merged = _merge(path, full, parts["overrides"], changes or {}, point)
            files = [_locate(path, entry) for entry in (parts["experiment"], *included)]
            run = [("run", f"{path.stem}-{full}")]
            overrides = [(key, _text(key, value)) for key, value in merged.items()]
            variations[full] = Arguments([*files, *common.configs], [*overrides, *common.overrides, *run])
    _check_results(path, *results, len(variations))
    return Suite(path, variations, seeds, *results)


def _check_results(path: Path, evaluate: dict[str, Any], scales: list[Any], law: dict[str, Any], count: int) -> None:
    is_number = all(not isinstance(scale, str) and 0 < scale < math.inf for scale in scales)
    if not is_number or len(set(scales)) < len(scales):
        raise UserError(f"{path}: guidance is {inline(scales)}; give different positive numbers")
    if scales and not evaluate:
        raise UserError(f"{path}: guidance has no effect without evaluate; add evaluate: {{num: 10000}}")
    if law and not (law.keys() == {"x", "y"} and law["x"] and isinstance(law["x"], list) and isinstance(law["y"], str)):
        raise UserError(f"{path}: power_law is {inline(law)}; write {{x: [parameters_in_millions], y: val/loss}}")
    if law and count == 1:
        raise UserError(f"{path}: power_law needs several variations; add one, or remove the key")


def _part(path: Path, values: dict[str, Any], key: str) -> Any:
    annotation, default = KEYS[key]
    value = default if values.get(key) is None else values[key]
    if value is None:
        raise UserError(f"{path}: {key} is missing; give the path of an experiment, such as ../demo_aim.yaml")
    if not fits(value, annotation):
        raise UserError(f"{path}: {key} is {inline(value)}; expected {type_text(annotation)}")
    return value


def _merge(path: Path, name: str, *parts: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the files that a variation includes, and its overrides."""
    merged = {key: value for part in parts for key, value in part.items()}
    if reserved := next((key for key in merged if key in ("run", "seed_everything")), None):
        raise UserError(f"{path}: variation {name}: {reserved} is set by the suite; remove it")
    files = merged.pop(INCLUDE, [])
    if not fits(files, list[str]):
        raise UserError(f"{path}: variation {name}: {INCLUDE} is {inline(files)}; it must be a list of files")
    return files, merged


def _points(grid: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return suffix of the name and overrides for every combination of the grid, the last key varying fastest."""
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [
        ("".join(f"-{key.rpartition('.')[2]}{_plain(value)}" for key, value in point.items()), point)
        for point in points
    ]


def _plain(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", str(value))


def _locate(path: Path, entry: str) -> Path:
    return Path(entry if entry.startswith(PREFIX) else os.path.normpath(path.parent / entry))


def _text(key: str, value: Any) -> str:
    """Return an override's value as on the command line: JSON is YAML, and texts of TEXTS have no quotes there."""
    return value if key in TEXTS and isinstance(value, str) else json.dumps(value)
