"""Check that ranks agree on versions, configuration and directory before training starts."""

import contextlib
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

# Of the last three, each process chooses its backend by those installed.
PACKAGES = ("torch", "lightning", "numpy", "torchvision", "webdataset", "triton", "mamba-ssm", "causal-conv1d")


@dataclass(frozen=True)
class RankInfo:
    """Environment of one rank, exchanged by all ranks.

    Args:
        node: name of its machine.
        rank: global rank.
        device: unique on its node; None for CPUs.
        versions: package -> version, with a hash of this project's source and the rank's micro-batch.
        configuration: hash of the composed configuration.
        start: name of the checkpoint from which it would start.
        sees_run_directory: True if rank 0's new file is visible there.
    """

    node: str
    rank: int
    device: str | None
    versions: dict[str, str]
    configuration: str
    start: str
    sees_run_directory: bool = True

    def __str__(self) -> str:
        return f"node {self.node}, rank {self.rank}"


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect results, and a hash of this package's source files."""
    result = {"python": platform.python_version(), **dict.fromkeys(PACKAGES, "not installed")}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            result[package] = version(package)
    return result | {"aim_lightning source": source_hash(Path(__file__).parents[1])}


def source_hash(package: Path) -> str:
    """Return twelve hexadecimal digits of all .py files below a directory."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def configuration_hash(values: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits of a composed configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def faults(ranks: list[RankInfo], run_dir: str) -> list[str]:
    """Return one line per difference between a rank and rank 0.

    Args:
        ranks: all ranks.
        run_dir: run directory, for the message.
    """
    first = min(ranks, key=lambda info: info.rank)
    lines = []
    for info in ranks:
        for package, installed in info.versions.items():
            if installed != (expected := first.versions.get(package)):
                lines.append(f"{info}: {package} is {installed}, on node {first.node} it is {expected}")
        if info.configuration != first.configuration:
            lines.append(f"{info}: its configuration differs from that of node {first.node} (rank 0)")
        if not info.sees_run_directory:
            fact = f"{info}: {run_dir} is not the directory that node {first.node} writes to"
            lines.append(f"{fact}; set runs_root to a directory that all nodes share")
    devices = Counter((info.node, info.device) for info in ranks if info.device)
    shared = {key: count for key, count in devices.items() if count > 1}
    return lines + [f"node {node}: {count} ranks share device {device}" for (node, device), count in shared.items()]


def late_views(ranks: list[RankInfo]) -> list[str]:
    """Return one line per rank that would start from another checkpoint, which is a transient error.

    Args:
        ranks: all ranks.
    """
    first = min(ranks, key=lambda info: info.rank)
    return [
        f"{info}: it would start from {info.start}, rank 0 on node {first.node} from {first.start}; "
        "the shared file system shows that node an old state"
        for info in ranks
        if info.start != first.start
    ]


def task_fault(job: Job | None, nodes: int, devices: int, visible_gpus: int | None) -> str | None:
    """Check the processes that srun started, before any process group exists, and return the fault or None.

    Args:
        job: of this process; None outside SLURM.
        nodes: trainer.num_nodes.
        devices: trainer.devices.
        visible_gpus: GPUs that this task can see; None for CPUs.
    """
    if job is None or job.tasks is None:
        return None
    if job.tasks != nodes * devices or job.nodes != nodes:
        needs = f"trainer.num_nodes {nodes} x trainer.devices {devices} needs {nodes * devices} tasks on {nodes}"
        return f"node {job.node}: srun started {job.tasks} tasks on {job.nodes} nodes; {needs}"
    if visible_gpus is not None and visible_gpus < devices:
        fix = "ask for GPUs per node (cluster.gpu_request --gpus-per-node={gpus}), not per task, and without --gpu-bind"
        return f"node {job.node}: a task sees {visible_gpus} GPUs, trainer.devices is {devices}; {fix}"
    return None
