"""results.json: the numbers of a run with all that is needed to believe them."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from aim_lightning.runs.directory import RunDirectory
from aim_lightning.utils.files import read_json, write_json

FORMAT = "aim_lightning.results/1"


def record(directory: RunDirectory, protocol: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
    """Merge metrics and their protocol into results.json; other metrics of the run stay."""
    before = read_json(directory.results, "results") if directory.results.exists() else {}
    results = {
        "format": FORMAT,
        "experiment": directory.experiment,
        "run": directory.run,
        "commit": commit(),
        "hardware": hardware(),
        "protocol": {**before.get("protocol", {}), **protocol},
        "metrics": {**before.get("metrics", {}), **metrics},
    }
    write_json(directory.results, results)
    return results


def commit() -> str:
    """Commit of the source tree, with -dirty for uncommitted changes; `unknown` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def hardware() -> str:
    """GPUs by name, or the processor with the threads in use."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
