"""Collect the metrics of a run from its records, and find the best values."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aim_lightning.evaluation.score_record import FORMAT, over_seeds, read_record, short_reference
from aim_lightning.runs.directory import RunDirectory
from aim_lightning.runs.results import read_results
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.short_key import short_key

# Metrics of which the highest value is best; of all others the lowest is.
HIGHER = re.compile(r"(val/)?(is|precision|recall|density|coverage|class_agreement|psnr|ssim|codebook\w*)(_|$)")
# Values of other images, for comparison, deviations, and distances that are neither good nor bad.
NO_SCORES = re.compile(r"^nearest_|_(real|untrained|std)(_|\b)")
# Short lists show these first.
HEADLINE = ("fid_", "fd_", "fdr_", "rfid_", "rfd_", "mind_", "is_", "class_agreement_", "val/psnr")


def best_metrics(directory: RunDirectory) -> dict[str, float]:
    """Return the best recorded value of each metric by name, those of HEADLINE first.

    Records are results.json, those of `evaluate` and `follow`, and those of evaluation during training. Of records that
    differ in the seed only, the mean counts.

    Args:
        directory: of the run.

    Raises:
        UserError: a record cannot be read.
    """
    records = [*_evaluations(directory.path), *_training_evaluations(directory.path / "samples/evaluations.jsonl")]
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(_without_seed(record), []).append(record)
    result: dict[str, float] = {}
    for metrics in (read_results(directory.results)["metrics"], *map(_named, groups.values())):
        for name, value in metrics.items():
            if not NO_SCORES.search(name):
                result[name] = best(name, [value, result.get(name, value)])
    return dict(sorted(result.items(), key=lambda item: (_rank(item[0]), item[0])))


def best(name: str, values: Iterable[float]) -> float:
    """Return the best value of a metric; NaN where no value is finite."""
    finite = [value for value in values if math.isfinite(value)]
    return (max if HIGHER.match(name) else min)(finite, default=math.nan)


def _rank(name: str) -> int:
    return next((i for i, start in enumerate(HEADLINE) if name.startswith(start)), len(HEADLINE))


def _evaluations(run_dir: Path) -> list[dict[str, Any]]:
    return [read_record(path) for path in sorted(run_dir.glob("evaluations/*/scores.json"))]


def _training_evaluations(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is not JSON line by line ({error}); move it away") from None
    return [record for record in records if isinstance(record, dict) and record.get("format") == FORMAT]


def _without_seed(record: dict[str, Any]) -> str:
    """Return a key that is equal for records of the same weights and protocol, except for the seed."""
    sampling = {**(record["protocol"].get("sampling") or {}), "seed": None}
    return short_key([record["model"], {**record["protocol"], "sampling": sampling}])


def _named(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the metrics of a group, with the reference in their names unless it is the training images."""
    reference = records[0]["protocol"]["reference"]
    suffix = "" if reference["kind"] == "pictures" else f"@{short_reference(reference)}"
    return {f"{name}{suffix}": value for name, value in over_seeds(records)["metrics"].items()}
