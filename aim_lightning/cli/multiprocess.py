"""Launch one process per device for commands without collectives, unless torchrun or srun has done it."""

import ctypes
import logging
import os
import re
import signal
import sys
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

from aim_lightning.utils.errors import UserError
from aim_lightning.utils.process import ProcessRank, launched_rank

LAUNCHER = "AIM_LAUNCHER"  # process id of the launcher, in the environment of its children
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", LAUNCHER)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def rank_or_launch(trainer: dict[str, Any]) -> ProcessRank | int:
    """Return this process's rank, or run this command once per device of `trainer` and return the exit code.

    Raises:
        UserError: the devices cannot be used, or the ranks of several nodes are unknown.
    """
    _end_with_launcher()
    if (launched := launched_rank()) is not None:
        return launched
    local, nodes, node = local_processes(trainer), trainer.get("num_nodes") or 1, int(os.environ.get("NODE_RANK") or 0)
    if nodes > 1 and "NODE_RANK" not in os.environ:
        raise UserError(f"trainer.num_nodes is {nodes}: start every node with torchrun or srun, or set NODE_RANK")
    if local == nodes == 1:
        return ProcessRank()
    return _launch([ProcessRank(node * local + i, nodes * local, i) for i in range(local)])


def local_processes(trainer: dict[str, Any]) -> int:
    """Return the number of devices of this machine that the trainer section asks for.

    Raises:
        UserError: it is not a number, or exceeds the GPUs of this machine.
    """
    devices, gpus = trainer.get("devices", "auto"), torch.cuda.device_count() if on_gpu(trainer) else 0
    if not re.fullmatch(r"auto|-1|[1-9]\d*", str(devices)):  # also a list such as 0,1
        raise UserError(f"trainer.devices is {devices}; give a number here, and choose GPUs with CUDA_VISIBLE_DEVICES")
    count = max(gpus, 1) if devices in ("auto", -1, "-1") else int(devices)
    if gpus and count > gpus:
        raise UserError(f"trainer.devices is {devices}, but this machine has {gpus}; reduce trainer.devices")
    return max(count, 1)


def on_gpu(trainer: dict[str, Any]) -> bool:
    """Return True if the trainer section selects GPUs.

    Raises:
        UserError: it requires GPUs, and torch finds none.
    """
    accelerator = trainer.get("accelerator", "auto")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator is {accelerator}, but torch can use none here; set it to cpu")
    return accelerator != "cpu" and torch.cuda.is_available()


def device_of(process: ProcessRank, trainer: dict[str, Any]) -> torch.device:
    """Return the device of this process: its GPU, which becomes the current one, or the CPU."""
    if not on_gpu(trainer):
        return torch.device("cpu")
    device = torch.device("cuda", process.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _launch(processes: list[ProcessRank]) -> int:
    """Run this command once per process; after the first failure torchrun's launcher stops the others."""
    # The layer of torchrun below its agent: without collectives, nodes need no rendezvous.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    args = dict.fromkeys(range(len(processes)), ("-m", "aim_lightning", *sys.argv[1:]))
    values = [(process.rank, process.world, process.local_rank, os.getpid()) for process in processes]
    envs = {i: dict(zip(VARIABLES, map(str, items), strict=True)) for i, items in enumerate(values)}
    children = start_processes("aim-lightning", sys.executable, args, envs, DefaultLogsSpecs(os.devnull))
    try:
        failures = children.wait(period=0.2).failures.values()
    except SignalException as stop:
        children.close(stop.sigval)
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + stop.sigval
    codes = [failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode for failure in failures]
    # The cause comes before its consequences: 143 of a stopped rank, and 1 of a rank that lost another one.
    return min(codes, default=0, key=lambda code: (code in (1, 143), code))


def _end_with_launcher() -> None:
    """Make the kernel kill this process when its launcher ends, also after kill -9."""
    launcher = os.environ.pop(LAUNCHER, None)  # processes that this one starts have another parent
    if launcher and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):  # it ended before the call
            os.kill(os.getpid(), signal.SIGKILL)
