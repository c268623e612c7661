"""Run commands of `aim-lightning` as processes, several at a time, one GPU each."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from aim_lightning.utils.logging import log

POLL = 0.2  # seconds
MOST_PER_GPU = 4
# Of the CUDA context, samples and features: `evaluate` with blocks of 500 images needed 2 GiB on an H100.
PROCESS_BYTES = 4 * 10**9
USABLE = 0.9  # share of the free memory
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def visible_gpus() -> list[str]:
    """Return the values of CUDA_VISIBLE_DEVICES that select one GPU each; empty without GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return list(names)[: torch.cuda.device_count()]


def processes_per_gpu(training_bytes: int | None, free_bytes: int | None) -> tuple[int, str]:
    """Return the number of processes that share a GPU, and the reason.

    Args:
        training_bytes: of the largest training; None = unknown.
        free_bytes: of the GPU with the least free memory; None = unknown.
    """
    if training_bytes is None or free_bytes is None:
        return 1, f"the {'free memory of the GPUs' if free_bytes is None else 'memory of a network'} is unknown"
    needed = training_bytes + PROCESS_BYTES
    number = max(1, min(MOST_PER_GPU, int(USABLE * free_bytes / needed)))
    return (
        number,
        f"the largest needs about {needed / 1e9:.1f} of {free_bytes / 1e9:.1f} GB, and {MOST_PER_GPU} is the most",
    )


def free_memory(gpus: list[str]) -> int | None:
    """Return the free bytes of the fullest GPU; None if they are unknown or a GPU takes one process only."""
    words = ["nvidia-smi", f"--id={','.join(gpus)}", "--query-gpu=memory.free,compute_mode"]
    # PyTorch would open a context on each GPU for the same numbers.
    try:
        done = subprocess.run([*words, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    free = [int(number) for number in re.findall(r"^(\d+), Default$", done.stdout, re.MULTILINE)]
    return min(free) << 20 if len(free) == len(gpus) else None


def run_tasks(tasks: dict[str, list[list[str]]], jobs: int, logs: dict[str, Path]) -> dict[str, int]:
    """Run the commands of each task in order, `jobs` tasks at a time; return the exit codes of failed tasks.

    A failed task does not stop the others. SIGTERM and Ctrl-C stop all processes with SIGTERM, after which trainings
    have saved a checkpoint.

    Args:
        tasks: arguments of `aim-lightning` per command, by name.
        jobs: processes at a time; process i uses GPU i modulo the number of GPUs.
        logs: files for the output by name; a task without one shares this process's output.
    """
    waiting, failed, gpus = list(tasks.items()), {}, visible_gpus()
    running: dict[int, tuple[str, list[list[str]], subprocess.Popen]] = {}
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    def start(slot: int, name: str, commands: list[list[str]]) -> None:
        log(f"[{len(tasks) - len(waiting)}/{len(tasks)}] {commands[0][0]} {name}")
        process = _start(commands[0], gpus[slot % len(gpus)] if gpus else None, jobs, logs.get(name))
        running[slot] = name, commands[1:], process

    try:
        while waiting or running:
            for slot in (slot for slot in range(jobs) if slot not in running and waiting):
                start(slot, *waiting.pop(0))
            time.sleep(POLL)
            for slot, (name, commands, process) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[slot]
                if code:
                    failed[name] = code if code > 0 else 128 - code
                elif commands:
                    start(slot, name, commands)
    finally:
        for _, _, process in running.values():
            process.terminate()
        for _, _, process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, previous)
    return failed


def _start(words: list[str], gpu: str | None, jobs: int, path: Path | None) -> subprocess.Popen:
    environment = {**os.environ, "AIM_HINTS": "0"} | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
    if jobs > 1:  # processes with all threads each slow each other down
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    output = None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        output = path.open("a", encoding="utf-8")
    command = [sys.executable, "-m", "aim_lightning", *words]
    # A session of its own: Ctrl-C in the terminal reaches this process alone, which stops the others once.
    options = {"start_new_session": True, "preexec_fn": _stop_with_parent if _LIBC else None}
    try:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output and subprocess.STDOUT, **options)
    finally:
        if output:
            output.close()


def _stop_with_parent() -> None:
    """Make the kernel send SIGTERM to this process when its parent ends, also after kill -9."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
