"""`aim-lightning follow`: evaluate the checkpoints of a running training in a separate process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_lightning.cli.common_options import add_raw, add_scoring, add_untrained_guidance
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
    add_untrained_guidance(parser)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two checks (default: 30)")
    patience = "seconds without a new checkpoint after which to stop (default: 3600)"
    parser.add_argument("--patience", type=float, default=3600.0, help=patience)


DIRECTORY = "follow"  # of the run; TensorBoard reads one writer per directory


def run(config: Config, options: argparse.Namespace) -> int:
    """Evaluate checkpoints until training is complete, or `patience` seconds pass without a new one."""
    from aim_lightning.cli.build import evaluation_setup as setup
    from aim_lightning.cli.build.trainer_cli import quiet

    quiet()
    directory, sampling = config.run_directory, config.sampling
    device = setup.start(config)
    scorer = setup.make_scorer(config, options, device)
    ranks = scorer.ranks
    protocol = {"sampling": asdict(sampling), "raw": options.raw, **scorer.protocol(options.num)}
    state = FollowState(directory, protocol, ranks)
    for step, path in new_checkpoints(directory, set(state.steps), options.every, options.patience, ranks):
        options.checkpoint = path
        model = load_together(path, ranks, lambda _: setup.load_model(config, options, device))
        if model is None:
            continue
        evaluation = setup.make_evaluation(config, options, model, scorer, keep_images=False)
        record = evaluation.run(setup.make_plan(options, model, sampling), sampling)
        log(path.name)
        setup.show(record)
        if ranks.is_rank_zero:
            state.add(step, record["metrics"])
    if not directory.checkpoints():
        raise UserError(f"{directory.path} got no checkpoint within {options.patience:g} seconds; see --patience")
    log(f"results: {directory.path}/evaluations; curves: make tensorboard, {state.directory}")
    return 0


def new_checkpoints(
    directory: RunDirectory, seen: set[int], every: float, patience: float, ranks: ProcessGroup
) -> Iterator[tuple[int, Path]]:
    """Yield steps and files as they appear, oldest first and equal on all ranks.

    Args:
        directory: of the run. Without a lease, training has not started, waits for a requeue, or is complete.
        seen: steps to leave out.
        every: seconds between two checks.
        patience: seconds without a new checkpoint after which to stop.
        ranks: rank 0 checks for all.
    """
    latest, end = time.monotonic(), TrainingEnd(directory)
    while True:
        # The lease comes first: training writes its last checkpoint before it releases the lease.
        is_training = directory.lease.exists()
        new = sorted(step for step in map(step_of, directory.checkpoints()) if step not in seen)
        is_over = False
        if ranks.is_rank_zero and not new:
            is_over = time.monotonic() - latest > patience or (not is_training and end.check())
        step, is_over = ranks.broadcast((new[0] if new else None, is_over))
        if step is not None:
            seen.add(step)
            yield step, directory.checkpoint_directory / f"step={step:08d}.ckpt"
            latest = time.monotonic()
        elif is_over:
            return
        else:
            time.sleep(every)


class TrainingEnd:
    """Decides whether training is complete; reads each checkpoint once."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.complete: dict[Path | None, bool] = {None: False}  # by newest checkpoint

    def check(self) -> bool:
        """Return True if `fit` would find no steps left after the newest checkpoint."""
        from aim_lightning.runs.history import read_content

        newest = next(iter(self.directory.checkpoints()), None)
        if newest not in self.complete:
            content = read_content(self.directory, {})
            action = decide(replace(content, now=content.before)).action
            # "refuse": imported weights, or an unreadable checkpoint.
            self.complete[newest] = action in ("finished", "refuse")
        return self.complete[newest]


def load_together(path: Path, ranks: ProcessGroup, load: Callable[[Path], EvaluatedModel]) -> EvaluatedModel | None:
    """Load a checkpoint on all ranks; return None on all where training has removed it for a newer one.

    Raises:
        UserError: a rank cannot read an existing file; on all ranks.
    """
    model, error = None, None
    try:
        model = load(path)
    except UserError as problem:
        error = str(problem)
    errors = [text for text in ranks.gather(error) if text]
    if errors and ranks.broadcast(path.exists()):
        raise UserError(errors[0])
    return None if errors else model


class FollowState:
    """The evaluated steps of one protocol and their curves, in follow/KEY/ of the run.

    Args:
        directory: of the run.
        protocol: plain values that the numbers depend on; another protocol gets another KEY.
        ranks: rank 0 writes.
    """

    def __init__(self, directory: RunDirectory, protocol: dict[str, Any], ranks: ProcessGroup) -> None:
        from aim_lightning.evaluation.score_record import short_key

        self.directory = directory.path / DIRECTORY / short_key(protocol)
        self.path = self.directory / "steps.json"
        self.steps: list[int] = read_json(self.path, "list of steps") if self.path.is_file() else []
        if ranks.is_rank_zero:
            write_json(self.directory / "protocol.json", protocol)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Write the next point of the curves, then the step."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.directory)) as writer:
            for name, value in metrics.items():
                writer.add_scalar(f"metrics/{name}", value, step)
        self.steps.append(step)
        write_json(self.path, self.steps)
