"""Run commands as two gloo processes each, as torchrun does; a script, since a test process must not be forked.

python ranks.py '[{"args": ["fit", ...], "kill_at": "CHECKPOINT"}, ...]': kill_at = SIGKILL both once that file exists.
Torch is imported once for all of them. It prints their output, and a JSON list of exit codes.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torture.processes import Start

from aim_lightning.cli.build import trainer_cli  # noqa: F401 (imported before the fork, for all ranks)

WORLD = 2


def run(job: dict) -> list[int]:
    args = [*job["args"], "--trainer.devices", str(WORLD), "--trainer.strategy", "ddp"]
    with tempfile.TemporaryDirectory() as directory:
        start = Start(args, WORLD, Path(directory) / "log", lambda rank: torch.set_num_threads(1)).launch()
        while "kill_at" in job and not Path(job["kill_at"]).exists() and not start.poll():
            time.sleep(0.002)
        if "kill_at" in job:
            start.kill()
        start.wait(200)
        print(start.text())
    return [start.codes.get(rank) for rank in range(WORLD)]


if __name__ == "__main__":
    print(json.dumps([run(job) for job in json.loads(sys.argv[1])]))
