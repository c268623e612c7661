"""scores.json: the values of one set of images with everything that they depend on."""

import statistics
from pathlib import Path
from typing import Any

from aim_lightning.metrics import metric_name
from aim_lightning.runs.results import commit, has_metrics
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json

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
    """Return one record.

    Args:
        model: facts about the generating model, or about the file of the images.
        data: facts about the training data, empty where they are unknown.
        values: by plain name; the record's names add the number of images, and of classes where some are missing.
        num_images: scored.
        protocol: everything that the values depend on.
        performance: speeds and memory.
        hardware: the devices in use.
        raw: the weights are trained instead of averaged ones.
    """
    suffix = _suffix(num_images, raw, protocol)
    return {
        "format": FORMAT,
        "model": model,
        "data": data,
        "num_images": num_images,
        "metrics": {f"{name}{suffix}": value for name, value in values.items()},
        "protocol": protocol,
        "performance": performance,
        "hardware": hardware,
        "commit": commit(),
    }


def plain_metrics(record: dict[str, Any]) -> dict[str, float]:
    """Return a record's values by name without the number of images."""
    raw, averaged = (_suffix(record["num_images"], raw, record.get("protocol", {})) for raw in (True, False))
    return {name.removesuffix(raw).removesuffix(averaged): value for name, value in record["metrics"].items()}


def _suffix(num_images: int, raw: bool, protocol: dict[str, Any]) -> str:
    chosen = chosen_classes(protocol)
    return metric_name("", num_images, raw=raw) + ("" if chosen is None else f"_{len(chosen)}classes")


def chosen_classes(protocol: dict[str, Any]) -> list[int] | None:
    """Return the classes of the samples; None for all classes, or without labels."""
    return protocol.get("labels", {}).get("chosen")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        UserError: the file is not a record.
    """
    record = read_format(path, "record of scores", FORMAT)
    if not has_metrics(record):
        raise UserError(f"{path} is damaged: it has no protocol or no metrics; remove it and evaluate again")
    return record


def read_format(path: Path, role: str, file_format: str) -> dict[str, Any]:
    """Read a JSON file whose entry `format` has this value.

    Args:
        path: of the file.
        role: noun for the file in errors.
        file_format: the value.

    Raises:
        UserError: the file is missing or something else.
    """
    values = read_json(path, role)
    if not isinstance(values, dict) or values.get("format") != file_format:
        raise UserError(f"{path} is not a {role}; expected format {file_format!r}")
    return values


def over_seeds(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first record with the mean of each metric over seeds and their sample deviation as `std`.

    With several seeds, the protocol's sampling.seed is their list, so that a mean differs from a single value.
    """
    columns = {name: [record["metrics"][name] for record in records] for name in records[0]["metrics"]}
    spread = {name: statistics.stdev(column) if len(column) > 1 else 0.0 for name, column in columns.items()}
    seeds = [record["protocol"]["sampling"]["seed"] for record in records]
    protocol = records[0]["protocol"]
    if len(seeds) > 1:
        protocol = {**protocol, "sampling": {**protocol["sampling"], "seed": seeds}}
    means = {name: statistics.fmean(column) for name, column in columns.items()}
    return {**records[0], "protocol": protocol, "metrics": means, "std": spread, "seeds": seeds}


def describe_reference(reference: dict[str, Any]) -> str:
    """Return name, number of images and start of the hash of a protocol's reference: values compare only within one."""
    size = f"{reference['pictures']:,} images of " if "pictures" in reference else ""
    hashed = _hash_name(reference)
    return f"{size}{reference['name']} ({hashed} {reference[hashed][:12]}…)"


def short_reference(reference: dict[str, Any]) -> str:
    """Return name and eight hex digits of the hash of a protocol's reference, for the name of a metric."""
    return f"{reference['name']}-{reference[_hash_name(reference)][:8]}"


def same_images(reference: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return True if two references of protocols have one hash."""
    return reference[_hash_name(reference)] == other[_hash_name(other)]


def _hash_name(reference: dict[str, Any]) -> str:
    return next(name for name in ("sha256", "pixels_sha256", "fingerprint") if name in reference)
