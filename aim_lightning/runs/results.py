"""Write results.json: the metrics of a run with the protocol that produced them."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.files import read_json, write_json

FORMAT = "aim_lightning.results/1"


def record(
    directory: RunDirectory, source: str, step: int, facts: dict[str, Any], metrics: dict[str, float], hardware: str
) -> dict[str, Any]:
    """Merge metrics into results.json and drop those of other steps of the run.

    `protocol` contains the step and one entry per source: `metrics` (their names), `step`, commit, hardware and
    `facts`. A metric belongs to the source that wrote it last. A source without metrics is removed.

    Args:
        directory: of the run.
        source: what produced the metrics, such as fit, validate or evaluate_fid_50k.
        step: optimizer steps of the newest checkpoint.
        facts: other settings that the metrics depend on; contains `step` if the metrics are of an earlier step.
        metrics: values by name.
        hardware: see `hardware`.

    Returns:
        the new content of results.json.

    Raises:
        UserError: results.json is not JSON, or has other content.
    """
    before = read_results(directory.results)
    # Metrics of another step must not stand next to those of this one.
    before = before if before["protocol"].get("step") == step else {}
    origin = {"commit": commit(), "hardware": hardware}
    entries = {name: entry for name, entry in before.get("protocol", {}).items() if name != "step"}
    # What this source wrote earlier is replaced as a whole, so that no metric of an old protocol remains.
    replaced = {*metrics, *entries.pop(source, {"metrics": []})["metrics"]}
    protocol = {"step": step, **_without(entries, replaced)}
    protocol[source] = {"step": step, **facts, **origin, "metrics": sorted(metrics)}
    kept = {name: value for name, value in before.get("metrics", {}).items() if name not in replaced}
    results = {"format": FORMAT, "experiment": directory.experiment, "run": directory.run, **origin}
    results |= {"protocol": protocol, "metrics": kept | metrics}
    write_json(directory.results, results)
    return results


def _without(entries: dict[str, dict[str, Any]], names: set[str]) -> dict[str, dict[str, Any]]:
    """Remove metrics from all entries, and entries without metrics."""
    kept = {source: [name for name in entry["metrics"] if name not in names] for source, entry in entries.items()}
    return {source: {**entries[source], "metrics": metrics} for source, metrics in kept.items() if metrics}


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a results.json; empty `protocol` and `metrics` without the file.

    Raises:
        UserError: the file is not JSON, or has other content.
    """
    if not path.exists():
        return {"protocol": {}, "metrics": {}}
    return read_json(path, "results", has_metrics)


def has_metrics(content: Any) -> bool:
    """Return True for a mapping with a protocol and with metrics, numbers by name."""
    if not isinstance(content, dict) or not isinstance(content.get("protocol"), dict):
        return False
    metrics = content.get("metrics")
    return isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())


def recorded_step(directory: RunDirectory) -> int | None:
    """Return the optimizer steps of the metrics in results.json; None without the file.

    Raises:
        UserError: as `read_results`.
    """
    return read_results(directory.results)["protocol"].get("step")


def commit() -> str:
    """Return the commit of the source tree, with -dirty for uncommitted changes; `unknown` without git.

    The environment variable AIM_COMMIT overrides it, for copies of the tree without their repository.
    """
    if override := os.environ.get("AIM_COMMIT"):
        return override
    # The tree of this file, not the working directory, which may be another repository.
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()


def hardware(device: torch.device | None = None, processes: int = 1) -> str:
    """Describe the hardware: GPUs by name, or the processor with the number of threads.

    Args:
        device: of this process; None = the first GPU, or the CPU without one.
        processes: number of processes, each with one device.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    several = f"{processes} processes, " if processes > 1 else ""
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    processor = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{several}CPU {processor}, {torch.get_num_threads()} threads"
