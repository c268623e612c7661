"""scores.json: the numbers of one set of images with all that is needed to believe them."""

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

from aim_lightning.metrics import metric_name
from aim_lightning.runs.results import commit
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, write_json

FORMAT = "aim_lightning.scores/1"


def score_record(
    model: dict[str, Any],
    data: dict[str, Any],
    values: dict[str, float],
    num_images: int,
    protocol: dict[str, Any],
    performance: dict[str, Any],
    hardware: str,
    raw: bool = False,
) -> dict[str, Any]:
    """One record.

    Args:
        model: what drew the images, or the file they are from.
        data: what the model was trained on, as far as it is known.
        values: by plain name; the record's names carry the number of images, and of classes where not all were drawn.
        num_images: scored.
        protocol: everything that the values depend on.
        performance: speeds and memory.
        hardware: what did the work.
        raw: whether the weights are trained ones in place of averaged ones.
    """
    return {
        "format": FORMAT,
        "model": model,
        "data": data,
        "num_images": num_images,
        "metrics": {f"{name}{_ending(num_images, raw, protocol)}": value for name, value in values.items()},
        "protocol": protocol,
        "performance": performance,
        "hardware": hardware,
        "commit": commit(),
    }


def plain_metrics(record: dict[str, Any]) -> dict[str, float]:
    """Values by name without the number of images."""
    count = record["num_images"]
    suffixes = [_ending(count, raw, record.get("protocol", {})) for raw in (True, False)]
    found = {}
    for name, value in record["metrics"].items():
        suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), "")
        found[name.removesuffix(suffix)] = value
    return found


def _ending(num_images: int, raw: bool, protocol: dict[str, Any]) -> str:
    chosen = chosen_classes(protocol)
    return metric_name("", num_images, raw=raw) + ("" if chosen is None else f"_{len(chosen)}classes")


def chosen_classes(protocol: dict[str, Any]) -> list[int] | None:
    """The classes that were drawn; None for all of them, or where there were no labels."""
    return protocol.get("labels", {}).get("chosen")


def read_record(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is no record."""
    record = read_json(path, "scores")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is no record of scores (format {FORMAT!r} expected)")
    return record


def over_seeds(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The first record with the mean of each metric, and `std` beside it (of a sample, 0 for one seed).

    With several, the protocol's sampling.seed is their list: a mean never passes for the values of one seed.
    """
    names = records[0]["metrics"]
    columns = {name: [record["metrics"][name] for record in records] for name in names}
    spread = {name: statistics.stdev(column) if len(column) > 1 else 0.0 for name, column in columns.items()}
    seeds = [record["protocol"]["sampling"]["seed"] for record in records]
    protocol = records[0]["protocol"]
    if len(seeds) > 1:
        protocol = {**protocol, "sampling": {**protocol["sampling"], "seed": seeds}}
    return {
        **records[0],
        "protocol": protocol,
        "metrics": {name: statistics.fmean(column) for name, column in columns.items()},
        "std": spread,
        "seeds": seeds,
    }


def append_record(path: Path, record: dict[str, Any]) -> None:
    """One more line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write atomically."""
    write_json(path, record)


def short_key(values: Any) -> str:
    """Eight hex digits for a directory's name: other plain values that its content depends on give another one."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
