"""Run commands as two gloo processes each, as torchrun does; a script, since a test process must not be forked.

python ranks.py '[{"args": ["fit", ...], "kill_at": "CHECKPOINT"}, ...]': kill_at = SIGKILL both once that file exists.
Torch is imported once for all of them. It prints a JSON list of exit codes.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import torch

from aim_lightning.cli.build import trainer_cli  # noqa: F401 (imported before the fork, for all ranks)
from aim_lightning.cli.main import main

WORLD = 2


def rank(number: int, port: int, args: list[str]) -> None:
    torch.set_num_threads(1)
    torchrun = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0}
    torchrun |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
    os.environ.update({name: str(value) for name, value in torchrun.items()})
    raise SystemExit(main(args))


def run(job: dict) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = [*job["args"], "--trainer.devices", str(WORLD), "--trainer.strategy", "ddp"]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank, args=(number, port, args)) for number in range(WORLD)]
    for process in ranks:
        process.start()
    while "kill_at" in job and not Path(job["kill_at"]).exists() and all(p.is_alive() for p in ranks):
        time.sleep(0.002)
    for process in ranks:
        if "kill_at" in job:
            process.kill()
        process.join(200)
    return [process.exitcode for process in ranks]


if __name__ == "__main__":
    print(json.dumps([run(job) for job in json.loads(sys.argv[1])]))
