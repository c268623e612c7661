"""`aim-lightning follow`: evaluate new checkpoints of a live run, beside it."""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from aim_lightning.cli.build import quiet
from aim_lightning.cli.config import backend_of
from aim_lightning.cli.scoring import (
    directory,
    make_evaluation,
    make_judge,
    make_plan,
    sampling_options,
    show,
    start,
)
from aim_lightning.config import Document
from aim_lightning.evaluation.generator import from_run
from aim_lightning.evaluation.ranks import Ranks
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.runs.directory import RunDirectory, list_checkpoints
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, write_json
from aim_lightning.utils.process import say

FOLDER = "follow"  # a TensorBoard run of its own: TensorBoard reads one writer a folder


def run(document: Document, options: argparse.Namespace) -> int:
    """Ends with the training, or after `patience` seconds without a new checkpoint."""
    quiet()
    ranks, device = start(document)
    judge = make_judge(document, options, ranks, device)
    tokenizer = document.values["tokenizer"]
    tokenizer = load_tokenizer(tokenizer) if tokenizer else None
    place, sampling = directory(document), sampling_options(document)
    done = Done(place.path / FOLDER, [asdict(sampling), options.raw, judge.protocol(options.num)])
    for step, path in new_checkpoints(place, set(done.steps), options.every, options.patience, ranks):
        try:
            how = {"raw": options.raw, "tokenizer": tokenizer, "backend": backend_of(document)}
            generator = from_run(path, device=device, **how)
        except UserError:
            if path.exists():
                raise
            continue  # training removed it meanwhile: a newer one is there
        evaluation = make_evaluation(document, options, generator, judge, keep_images=False)
        record = evaluation.run(make_plan(options, generator, sampling), sampling)
        say(path.name)
        show(record)
        if ranks.is_first:
            done.add(step, record["metrics"])
    say(f"results: {place.path}/evaluations; curves: make tensorboard, {place.experiment}/{place.run}/{FOLDER}")
    return 0


def new_checkpoints(
    place: RunDirectory, seen: set[int], every: float, patience: float, ranks: Ranks
) -> Iterator[tuple[int, Path]]:
    """Steps and files as they appear, oldest first; the same on every process.

    Args:
        place: of the run; its lease says whether training goes on.
        seen: steps to leave out.
        every: seconds between two looks.
        patience: seconds without a new one to stop after.
        ranks: the first looks for all.
    """
    news = time.monotonic()
    while True:
        training = place.lease.exists()  # before the look: the last checkpoint comes before the lease goes
        found = sorted(int(path.stem.split("=")[1]) for path in list_checkpoints(place.path))
        fresh = [step for step in found if step not in seen]
        tired = not training or time.monotonic() - news > patience
        step, tired = ranks.from_first((fresh[0] if fresh else None, tired))
        if step is not None:
            seen.add(step)
            yield step, place.checkpoint_folder / f"step={step:08d}.ckpt"
            news = time.monotonic()
        elif tired:
            return
        else:
            time.sleep(every)


class Done:
    """Which steps were followed before under the same protocol, and their curves.

    Args:
        folder: of the events.
        protocol: plain values; another protocol has curves of its own names and steps of its own.
    """

    def __init__(self, folder: Path, protocol: list) -> None:
        self.folder = folder
        key = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]
        self.path = folder / f"done-{key}.json"
        self.steps: list[int] = read_json(self.path, "list of steps") if self.path.is_file() else []

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Write the curves' next point, then note the step."""
        with SummaryWriter(str(self.folder)) as writer:
            for name, value in metrics.items():
                writer.add_scalar(f"metrics/{name}", value, step)
        self.steps.append(step)
        write_json(self.path, self.steps)
