"""results.json: the numbers of a run with all that is needed to believe them."""

import os
import platform
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
    """Put metrics into results.json, which holds numbers of one step of the run: those of any other are dropped.

    `protocol` has that step and an entry a source: `metrics` (the names of its numbers), `step`, commit, hardware and
    `facts`. A name belongs to the entry that wrote it last; an entry that lost all its names goes.

    Args:
        directory: of the run.
        source: what made the numbers: fit, validate, evaluate_fid_50k.
        step: optimizer steps of the newest checkpoint.
        facts: everything else that the numbers depend on; `step` among them where they are of an earlier one.
        metrics: by name.
        hardware: from `hardware`.

    Raises:
        UserError: results.json is no JSON.
    """
    before = read_json(directory.results, "results") if directory.results.exists() else {}
    before = before if before.get("protocol", {}).get("step") == step else {}
    made = {"commit": commit(), "hardware": hardware}
    entries = {name: entry for name, entry in before.get("protocol", {}).items() if name != "step"}
    replaced = {*metrics, *entries.pop(source, {"metrics": []})["metrics"]}
    results = {
        "format": FORMAT,
        "experiment": directory.experiment,
        "run": directory.run,
        **made,
        "protocol": {
            "step": step,
            **_without(entries, replaced),
            source: {"step": step, **facts, **made, "metrics": sorted(metrics)},
        },
        "metrics": {n: value for n, value in before.get("metrics", {}).items() if n not in replaced} | metrics,
    }
    write_json(directory.results, results)
    return results


def _without(entries: dict[str, dict[str, Any]], names: set[str]) -> dict[str, dict[str, Any]]:
    """The entries that still have a name of their own."""
    left = {source: [name for name in entry["metrics"] if name not in names] for source, entry in entries.items()}
    return {source: {**entries[source], "metrics": own} for source, own in left.items() if own}


def recorded_step(directory: RunDirectory) -> int | None:
    """Optimizer steps of the checkpoint whose numbers results.json holds; None without one.

    Raises:
        UserError: results.json is no JSON.
    """
    if not directory.results.exists():
        return None
    return read_json(directory.results, "results").get("protocol", {}).get("step")


def commit() -> str:
    """AIM_COMMIT where it is set: a copy of the tree need not have the right git, or any.

    Else git's commit of the source tree, with -dirty for uncommitted changes; `unknown` where there is none.
    """
    if given := os.environ.get("AIM_COMMIT"):
        return given
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def hardware(device: torch.device | None = None, processes: int = 1) -> str:
    """What did the work: GPUs by name, or the processor with the threads in use.

    Args:
        device: of this process; None = the first GPU where there is one.
        processes: with a device each.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    several = f"{processes} processes, " if processes > 1 else ""
    return f"{several}CPU {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
