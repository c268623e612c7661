"""What must be the same on every rank before training starts, compared in one place."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aim_lightning.cluster.slurm_api import Job

PACKAGES = (
    *("torch", "lightning", "numpy", "torchvision", "webdataset"),
    *("triton", "mamba-ssm", "causal-conv1d"),  # each process chooses its backend by what it finds
)


@dataclass(frozen=True)
class RankFacts:
    """One rank's view of itself.

    Args:
        node: name of its machine.
        rank: of all.
        device: what it computes on, unique on its node; None for processors.
        world_size: ranks that it knows of.
        versions: package -> version, with a hash of this project's source.
        configuration: hash of the composed document.
        start: name of the checkpoint that it would start from.
        sees_run_directory: whether it found rank 0's fresh file there.
    """

    node: str
    rank: int
    device: str | None
    world_size: int
    versions: dict[str, str]
    configuration: str
    start: str
    sees_run_directory: bool = True


def versions() -> dict[str, str]:
    """Versions of what decides about results, and a hash of this package's source files."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["aim_lightning source"] = source_hash(Path(__file__).parents[1])
    return found


def source_hash(package: Path) -> str:
    """Twelve digits for all .py files below a directory."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def configuration_hash(values: Mapping[str, Any]) -> str:
    """Twelve digits for a document."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def faults(ranks: list[RankFacts], run_dir: str) -> list[str]:
    """One line a fault, each with the node it is on; rank 0 is what the others are held against."""
    first = min(ranks, key=lambda facts: facts.rank)
    lines = []
    for facts in ranks:
        who = f"node {facts.node}, rank {facts.rank}"
        if facts.world_size != len(ranks):
            lines.append(f"{who}: it counts {facts.world_size} ranks, but {len(ranks)} answered")
        for package, here in facts.versions.items():
            there = first.versions.get(package)
            if here != there:
                lines.append(f"{who}: {package} is {here}, on node {first.node} it is {there}")
        if facts.configuration != first.configuration:
            lines.append(f"{who}: its configuration differs from that of node {first.node} (rank 0)")
        if not facts.sees_run_directory:
            lines.append(
                f"{who}: {run_dir} is not the directory that node {first.node} writes to; "
                "set runs_root to a directory that all nodes share"
            )
    devices = Counter((facts.node, facts.device) for facts in ranks if facts.device)
    lines += [
        f"node {node}: {count} ranks share device {device}" for (node, device), count in devices.items() if count > 1
    ]
    return lines


def late_views(ranks: list[RankFacts]) -> list[str]:
    """One line for each rank that a shared file system shows an old state of the run: it passes, unlike a fault."""
    first = min(ranks, key=lambda facts: facts.rank)
    return [
        f"node {facts.node}, rank {facts.rank}: it would start from {facts.start}, rank 0 on node {first.node} from "
        f"{first.start}; the shared file system shows that node an old state"
        for facts in ranks
        if facts.start != first.start
    ]


def task_fault(job: Job | None, nodes: int, devices: int, visible_gpus: int | None) -> str | None:
    """What is wrong with the step that srun started, before any process group exists.

    Args:
        nodes: trainer.num_nodes.
        devices: trainer.devices.
        visible_gpus: what this task can see; None for processors.
    """
    if job is None or job.tasks is None:
        return None
    if job.tasks != nodes * devices or job.nodes != nodes:
        return (
            f"node {job.node}: srun started {job.tasks} tasks on {job.nodes} nodes; trainer.num_nodes {nodes} x "
            f"trainer.devices {devices} needs {nodes * devices} tasks on {nodes}"
        )
    if visible_gpus is not None and visible_gpus < devices:
        return (
            f"node {job.node}: a task sees {visible_gpus} GPUs, trainer.devices is {devices}; ask for GPUs a node "
            "(cluster.gpu_request --gpus-per-node={gpus}), not a task, and without --gpu-bind"
        )
    return None
