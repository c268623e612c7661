"""Write the figures of a benchmark to benchmarks/results/BENCHMARK_HARDWARE_DATE.json."""

import datetime
import json
import os
import shlex
import sys
from pathlib import Path

import torch

from aim_lightning.runs.results import commit

RESULTS = Path(os.environ.get("BENCH_OUT") or Path(__file__).parent / "results")


def hardware() -> str:
    """Return the name of the GPU, or of the CPU and the number of its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().removeprefix("NVIDIA ")
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else f"CPU x{os.cpu_count()}"


def save(benchmark: str, rows: list[dict]) -> Path:
    """Write the rows with command, commit, hardware, versions and date."""
    name = hardware()
    record = {
        "command": shlex.join(sys.argv),
        "commit": commit(),
        "hardware": name,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    words = "-".join(name.replace("(R)", "").split()[:4]).replace("/", "-")
    path = RESULTS / f"{benchmark}_{words}_{record['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
