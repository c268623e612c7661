"""Commands of several processes without collectives, started as a training is: torchrun, srun, or nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import torch

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import ProcessRank, launched_rank

PIPE = "AIM_LAUNCHER_PIPE"  # file descriptor that tells a child of its launcher's end


def rank_or_launch(trainer: dict[str, Any]) -> ProcessRank | int:
    """This process's place; without a launcher, one process a device of `trainer`.

    Where more than one is wanted, the same command is started once a device and waited for.

    Returns:
        The place, or the exit code of the processes that did the work.
    """
    _end_with_launcher()
    place = launched_rank()
    if place is not None:
        return place
    local, nodes, node = local_processes(trainer), trainer.get("num_nodes") or 1, int(os.environ.get("NODE_RANK") or 0)
    if nodes > 1 and "NODE_RANK" not in os.environ:
        raise UserError(f"trainer.num_nodes is {nodes}: start every node with torchrun or srun, or set NODE_RANK")
    if local == nodes == 1:
        return ProcessRank()
    return _run_all([ProcessRank(node * local + i, nodes * local, i) for i in range(local)])


def local_processes(trainer: dict[str, Any]) -> int:
    """How many devices of this machine the trainer section asks for.

    Raises:
        UserError: more GPUs than there are.
    """
    devices, gpus = trainer.get("devices", "auto"), torch.cuda.device_count() if on_gpu(trainer) else 0
    if isinstance(devices, list):
        raise UserError(f"trainer.devices is {devices}; give a number here, and choose GPUs with CUDA_VISIBLE_DEVICES")
    count = max(gpus, 1) if devices in ("auto", -1, "-1") else int(devices)
    if gpus and count > gpus:
        raise UserError(f"trainer.devices is {devices}, but this machine has {gpus}")
    return max(count, 1)


def on_gpu(trainer: dict[str, Any]) -> bool:
    """Whether the trainer section means GPUs.

    Raises:
        UserError: it does, and there is none.
    """
    accelerator = trainer.get("accelerator", "auto")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator is {accelerator}, but torch can use none here; set it to cpu")
    return accelerator != "cpu" and torch.cuda.is_available()


def device_of(place: ProcessRank, trainer: dict[str, Any]) -> torch.device:
    """The device of this process: its own GPU, or the CPU."""
    if not on_gpu(trainer):
        return torch.device("cpu")
    device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _run_all(places: list[ProcessRank]) -> int:
    """Run this command in each place; when one fails the others are stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the others are stopped too
    # A pipe that closes when this process ends, however it does: see `_end_with_launcher`.
    theirs, ours = os.pipe()
    command = [sys.executable, "-m", "aim_lightning", *sys.argv[1:]]
    running = [subprocess.Popen(command, env=_env(place, theirs), pass_fds=[theirs]) for place in places]
    os.close(theirs)
    try:
        while any(one.poll() is None for one in running) and not any(one.returncode for one in running):
            time.sleep(0.2)
    finally:
        for one in running:
            one.terminate()
        codes = [one.wait() for one in running]
        os.close(ours)
    failed = [code if code > 0 else 128 - code for code in codes if code]
    # A process's own exit code before 143 of those that were stopped for it, and before 1 of those that then missed it.
    return min(failed, default=0, key=lambda code: (code == 1 or code == 143, code))


def _end_with_launcher() -> None:
    """In a process that `_run_all` started: end when its launcher is gone, also after kill -9."""
    pipe = os.environ.pop(PIPE, None)  # not for the processes that this one starts

    def wait(number: int) -> None:
        os.read(number, 1)  # nothing is ever written: this returns when no launcher holds the other end
        print("the process that started this one is gone; stopping", file=sys.stderr, flush=True)
        os._exit(143)

    if pipe:
        threading.Thread(target=wait, args=(int(pipe),), daemon=True, name="launcher").start()


def _env(place: ProcessRank, pipe: int) -> dict[str, str]:
    own = {"RANK": place.rank, "WORLD_SIZE": place.world, "LOCAL_RANK": place.local_rank, PIPE: pipe}
    return {**os.environ, **{name: str(value) for name, value in own.items()}}
