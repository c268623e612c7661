"""`aim-lightning follow`: evaluate the checkpoints of a running training in a separate process."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_lightning.cli.common_options import SCORING, add_shared, number, option
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
DIRECTORY = "follow"  # of the run; TensorBoard reads one writer per directory
STEPS = "steps.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_shared(parser, *SCORING, "raw", "allow_untrained_guidance")
    parser.add_argument("--every", **option("seconds between two checks", 30.0, type=number(float, above=True)))
    patience = "seconds without a new checkpoint after which to stop"
    parser.add_argument("--patience", **option(patience, 3600.0, type=number(float)))


def run(config: Config, options: argparse.Namespace) -> int:
    """Evaluate checkpoints until training is complete, or `patience` seconds pass without a new one."""
    from torch.utils.tensorboard import SummaryWriter

    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.utils.short_key import short_key

    directory, sampling = config.run_directory, config.sampling
    device = setup.start(config)
    scorer = setup.make_scorer(config, options, device)
    ranks = scorer.ranks
    protocol = {"sampling": asdict(sampling.for_scores()), "raw": options.raw, **scorer.protocol(options.num)}
    # One directory per protocol and type of device, which determines what `auto` becomes.
    curves = directory.path / DIRECTORY / short_key([protocol, device.type])
    steps = read_json(curves / STEPS, "list of steps", _are_steps) if (curves / STEPS).exists() else []
    for step, path in new_checkpoints(directory, set(steps), options.every, options.patience, ranks):
        options.checkpoint = path
        model = load_together(path, ranks, lambda: setup.load_model(config, options, device))
        if model is None:
            continue
        evaluation = setup.make_evaluation(config, options, model, scorer, keep_images=False)
        record = evaluation.run(setup.make_plan(options, model, sampling), sampling)
        log(path.name)
        setup.show(record, options)
        if ranks.is_rank_zero:
            # The record's options contain no `auto`.
            write_json(curves / "protocol.json", protocol | {"sampling": record["protocol"]["sampling"]})
            with SummaryWriter(str(curves)) as writer:
                for name, value in record["metrics"].items():
                    writer.add_scalar(f"metrics/{name}", value, step)
            # The step comes last: a step in the list is never evaluated again.
            steps.append(step)
            write_json(curves / STEPS, steps)
    if not directory.checkpoints():
        raise UserError(f"{directory.path} got no checkpoint within {options.patience:g} seconds; see --patience")
    log(f"results: {directory.path}/evaluations; curves: make tensorboard, {curves}")
    return 0


def _are_steps(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(step, int) for step in content)


def new_checkpoints(
    directory: RunDirectory, seen: set[int], every: float, patience: float, ranks: ProcessGroup
) -> Iterator[tuple[int, Path]]:
    """Yield steps and files as they appear, oldest first and equal on all ranks.

    Args:
        directory: of the run. Without a lease, training has not started, waits for a requeue, or is complete.
        seen: steps to skip.
        every: seconds between two checks.
        patience: seconds without a new checkpoint after which to stop.
        ranks: rank 0 checks for all.
    """

    @functools.cache  # reads each checkpoint once
    def is_last(newest: Path | None) -> bool:
        from aim_lightning.runs.history import read_content

        if newest is None:
            return False
        content = read_content(directory, {})
        # "refuse": imported weights, or an unreadable checkpoint.
        return decide(replace(content, now=content.before)).action in ("finished", "refuse")

    latest = time.monotonic()
    while True:
        # The lease comes first: training writes its last checkpoint before it releases the lease.
        is_training, is_over = directory.lease.exists(), False
        new = sorted(step for step in map(step_of, directory.checkpoints()) if step not in seen)
        if ranks.is_rank_zero and not new:
            is_over = time.monotonic() - latest > patience
            is_over = is_over or (not is_training and is_last(next(iter(directory.checkpoints()), None)))
        step, is_over = ranks.broadcast((new[0] if new else None, is_over))
        if step is not None:
            seen.add(step)
            yield step, directory.checkpoint_directory / f"step={step:08d}.ckpt"
            latest = time.monotonic()
        elif is_over:
            return
        else:
            time.sleep(every)


def load_together(path: Path, ranks: ProcessGroup, load: Callable[[], EvaluatedModel]) -> EvaluatedModel | None:
    """Load a checkpoint on all ranks; return None on all where training has removed it for a newer one.

    Raises:
        UserError: a rank cannot read an existing file; on all ranks.
    """
    try:
        return ranks.run_on_all(load)
    except UserError:
        # Raised on all ranks, so that all take part in this broadcast.
        if ranks.broadcast(path.exists()):
            raise
        return None
