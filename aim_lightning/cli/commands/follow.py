"""`aim-lightning follow`: evaluate new checkpoints of a live run, beside it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_lightning.cli.commands.config import backend_of
from aim_lightning.cli.common_options import add_raw, add_scoring
from aim_lightning.cli.config import Config
from aim_lightning.runs.directory import RunDirectory, step_of
from aim_lightning.runs.resume_policy import decide
from aim_lightning.utils.errors import UserError
from aim_lightning.utils.files import read_json, write_json
from aim_lightning.utils.logging import log

if TYPE_CHECKING:
    from aim_lightning.evaluation.evaluated_model import EvaluatedModel
    from aim_lightning.utils.dist import ProcessGroup

HELP = "evaluate the checkpoints of a running training in a separate process"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_scoring(parser)
    add_raw(parser)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two checks (default: 30)")
    patience = "seconds without a new checkpoint after which to stop (default: 3600)"
    parser.add_argument("--patience", type=float, default=3600.0, help=patience)


DIRECTORY = "follow"  # TensorBoard runs of their own: TensorBoard reads one writer a directory


def run(document: Config, options: argparse.Namespace) -> int:
    """Ends when training is complete, or after `patience` seconds without a new checkpoint."""
    from aim_lightning.cli.build.evaluation_setup import (
        directory,
        make_evaluation,
        make_plan,
        make_scorer,
        sampling_options,
        show,
        start,
    )
    from aim_lightning.cli.build.trainer_cli import quiet
    from aim_lightning.evaluation.evaluated_model import from_run
    from aim_lightning.pipeline import load_tokenizer

    quiet()
    place, sampling = directory(document), sampling_options(document)
    ranks, device = start(document)
    scorer = make_scorer(document, options, ranks, device)
    tokenizer = document.values["tokenizer"]
    tokenizer = load_tokenizer(tokenizer) if tokenizer else None
    done = FollowState(place, {"sampling": asdict(sampling), "raw": options.raw, **scorer.protocol(options.num)}, ranks)
    for step, path in new_checkpoints(place, set(done.steps), options.every, options.patience, ranks):
        how = {"raw": options.raw, "tokenizer": tokenizer, "backend": backend_of(document)}
        generator = load_together(path, ranks, lambda path, how=how: from_run(path, device=device, **how))
        if generator is None:
            continue
        evaluation = make_evaluation(document, options, generator, scorer, keep_images=False)
        record = evaluation.run(make_plan(options, generator, sampling), sampling)
        log(path.name)
        show(record)
        if ranks.is_rank_zero:
            done.add(step, record["metrics"])
    if not place.checkpoints():
        raise UserError(f"{place.path} got no checkpoint within {options.patience:g} seconds; see --patience")
    log(f"results: {place.path}/evaluations; curves: make tensorboard, {done.directory}")
    return 0


def new_checkpoints(
    place: RunDirectory, seen: set[int], every: float, patience: float, ranks: ProcessGroup
) -> Iterator[tuple[int, Path]]:
    """Steps and files as they appear, oldest first; the same on every process.

    Args:
        place: of the run. Without a lease its training has not begun, waits for a requeue, or is complete.
        seen: steps to leave out.
        every: seconds between two looks.
        patience: seconds without a new one to stop after.
        ranks: the first looks for all.
    """
    news, over = time.monotonic(), TrainingEnd(place)
    while True:
        training = place.lease.exists()  # before the look: the last checkpoint comes before the lease goes
        fresh = sorted(step for step in map(step_of, place.checkpoints()) if step not in seen)
        tired = (
            not fresh and ranks.is_rank_zero and (time.monotonic() - news > patience or (not training and over.look()))
        )
        step, tired = ranks.broadcast((fresh[0] if fresh else None, tired))
        if step is not None:
            seen.add(step)
            yield step, place.checkpoint_directory / f"step={step:08d}.ckpt"
            news = time.monotonic()
        elif tired:
            return
        else:
            time.sleep(every)


class TrainingEnd:
    """Whether `fit` would find nothing left to train; a checkpoint is read once."""

    def __init__(self, place: RunDirectory) -> None:
        self.place, self.known = place, {None: False}

    def look(self) -> bool:
        """Of the newest checkpoint."""
        from aim_lightning.runs.history import read_content

        newest = next(iter(self.place.checkpoints()), None)
        if newest not in self.known:
            content = read_content(self.place, {})
            action = decide(replace(content, now=content.before)).action
            self.known[newest] = action in ("finished", "refuse")  # refused: imported weights, or nothing readable
        return self.known[newest]


def load_together(path: Path, ranks: ProcessGroup, load: Callable[[Path], EvaluatedModel]) -> EvaluatedModel | None:
    """A checkpoint on all processes, or None on all where training has removed it meanwhile: a newer one is there.

    Raises:
        UserError: a process cannot read a file that is there; on all processes.
    """
    try:
        generator, problem = load(path), None
    except UserError as error:
        generator, problem = None, str(error)
    problems = [one for one in ranks.gather(problem) if one]
    if problems and ranks.broadcast(path.exists()):
        raise UserError(problems[0])
    return None if problems else generator


class FollowState:
    """Which steps were followed before under the same protocol, and their curves: follow/KEY/ of the run.

    Args:
        place: of the run.
        protocol: plain values that the numbers depend on; another protocol has a directory of its own.
        ranks: the first one writes.
    """

    def __init__(self, place: RunDirectory, protocol: dict[str, Any], ranks: ProcessGroup) -> None:
        from aim_lightning.evaluation.score_record import short_key

        self.directory = place.path / DIRECTORY / short_key(protocol)
        self.path = self.directory / "steps.json"
        self.steps: list[int] = read_json(self.path, "list of steps") if self.path.is_file() else []
        if ranks.is_rank_zero:
            write_json(self.directory / "protocol.json", protocol)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Write the curves' next point, then note the step."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.directory)) as writer:
            for name, value in metrics.items():
                writer.add_scalar(f"metrics/{name}", value, step)
        self.steps.append(step)
        write_json(self.path, self.steps)
