"""Checkpoints: failed writes on every rank, intervals, and the ones that are kept."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import assert_user_error

from aim_lightning.callbacks.evaluation.training_evaluation import TrainingEvaluation
from aim_lightning.callbacks.training.checkpoints import Checkpoints, write_or_report
from aim_lightning.checkpoint.io import CheckpointNotWritten
from aim_lightning.utils.errors import UserError

MODULE = "aim_lightning.callbacks.training.checkpoints"
FULL = CheckpointNotWritten("no space left")


def rank(number, sent, error=None, step=1):
    """Return a trainer for `write_or_report`: rank 0 writes and broadcasts; `sent` collects its values."""

    def save(content, path):
        if number == 0 and error:
            raise error
        if number == 0:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(content)

    def broadcast(value):
        if number == 0:
            sent.append(value)
        return sent[-1]

    return SimpleNamespace(
        _checkpoint_connector=SimpleNamespace(dump_checkpoint=lambda weights_only: "weights"),
        strategy=SimpleNamespace(save_checkpoint=save, broadcast=broadcast),
        is_global_zero=number == 0,
        global_step=step,
    )


def test_a_full_disk_gives_all_ranks_the_same_failure(tmp_path):
    for error, result in ((FULL, "no space left"), (None, None)):
        sent = []
        assert [write_or_report(rank(number, sent, error), tmp_path / "a.ckpt") for number in (0, 1)] == [result] * 2


def test_content_that_cannot_be_loaded_ends_all_ranks(tmp_path):
    sent = []
    for number in (0, 1):
        trainer = rank(number, sent, UserError("a is a Path"))
        assert_user_error("is a Path", write_or_report, trainer, tmp_path / "a.ckpt")


def test_the_best_checkpoints_stay_when_a_better_one_cannot_be_written(tmp_path, capsys):
    evaluations = [TrainingEvaluation(every_n_steps=1, keep_best=1) for _ in range(2)]
    sent = []
    for evaluation in evaluations:
        evaluation.features, evaluation.run_dir = SimpleNamespace(metric_name="fd"), str(tmp_path)
    for step, value, error in ((1, 5.0, None), (2, 3.0, FULL)):
        for number, evaluation in enumerate(evaluations):
            evaluation._keep_best(rank(number, sent, error, step), {"fd": value})
    assert [[entry[1] for entry in evaluation.best] for evaluation in evaluations] == [[1], [1]]
    assert [file.name for file in (tmp_path / "best").iterdir()] == ["fd_5k=5.0000-step=00000001.ckpt"]
    assert "warning: no space left; the previous best checkpoints stay" in capsys.readouterr().out


def test_a_checkpoint_is_written_before_the_first_batch_of_an_accumulation(monkeypatch):
    checkpoints, saved = Checkpoints(every_n_steps=2), []
    monkeypatch.setattr(checkpoints, "save", lambda trainer: saved.append(batch))
    trainer = SimpleNamespace(datamodule=SimpleNamespace(plan=SimpleNamespace(accumulate=3)))
    for batch in range(15):
        trainer.global_step = batch // 3
        checkpoints.on_train_batch_start(trainer, None, None, batch)
    assert saved == [6, 12]  # the first batches after steps 2 and 4


def test_a_failed_write_leaves_the_list_of_best_checkpoints_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.flush", lambda trainer: None)
    checkpoints, sent = Checkpoints(keep_best=1), []
    checkpoints.run_dir = str(tmp_path)
    assert not checkpoints.save(rank(0, sent, step=0)) and not sent  # step 0 needs none
    for step, value, error in ((1, 5.0, None), (2, 3.0, FULL)):
        checkpoints.candidate = (value, step)
        assert checkpoints.save(rank(0, sent, error, step)) == (error is None)
    assert (checkpoints.best, checkpoints.saved_step) == ([(5.0, 1)], 1)
    checkpoints.save(rank(0, sent, step=3))  # written, without a validation of its own
    checkpoints.candidate = (2.0, 4)
    checkpoints.save(rank(0, sent, step=4))
    assert checkpoints.best == [(2.0, 4)] and 0 < checkpoints.slowest < 60
    checkpoints.slowest = 100.0
    assert checkpoints.save(rank(0, sent, step=5)) and checkpoints.slowest == 100.0
    written = len(sent)
    assert checkpoints.save(rank(0, sent, step=5)) and len(sent) == written  # this step has one already


def test_the_best_checkpoints_are_restored_for_the_same_metric_only():
    source = Checkpoints(keep_best=2, monitor="val/loss")
    source.best = [(2.0, 4), (3.0, 2)]
    for options, best in (({}, source.best), ({"monitor": "val/psnr"}, []), ({"mode": "max"}, [])):
        checkpoints = Checkpoints(keep_best=2, **options)
        checkpoints.load_state_dict(source.state_dict())
        assert checkpoints.best == best


@pytest.mark.parametrize(("mode", "best"), [("min", [3, 1]), ("max", [2, 4])])
def test_checkpoints_are_ranked_by_their_metric_then_by_their_step(mode, best):
    checkpoints = Checkpoints(keep_best=2, mode=mode)
    for step, value in ((1, 5.0), (2, 7.0), (3, 4.0), (4, 7.0)):
        checkpoints.candidate = (value, step)
        checkpoints.best = checkpoints._ranked(step)
    assert [step for _, step in checkpoints.best] == best
    checkpoints.candidate = (4.5, 9)  # of another step's validation
    assert [step for _, step in checkpoints._ranked(10)] == best


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({"every_n_steps": 5}, [5, 10, 15, 20]),
        ({"every_n_steps": None, "every_n_minutes": 2.0}, [10]),  # the clock is read every 10 steps
        ({"every_n_steps": 15, "every_n_minutes": 2.0}, [10, 15]),
    ],
)
def test_checkpoints_are_due_by_steps_or_by_the_clock(monkeypatch, options, due):
    checkpoints = Checkpoints(**options)
    times = {10: 120.0, 20: 119.9}
    trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda value: value))
    monkeypatch.setattr(f"{MODULE}.time.monotonic", lambda: 50 + times[trainer.global_step])
    checkpoints.saved_at, steps = 50.0, []
    for trainer.global_step in range(1, 21):
        if checkpoints._due(trainer):
            steps.append(trainer.global_step)
    assert steps == due


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(keep_last=2, keep_best=1)
    checkpoints.run_dir, checkpoints.best = str(tmp_path), [(1.0, 2)]
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    for step in range(1, 6):
        (directory / f"step={step:08d}.ckpt").touch()
    checkpoints._remove_others()
    assert sorted(path.name for path in directory.iterdir()) == [f"step={step:08d}.ckpt" for step in (2, 4, 5)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every_n_steps": None}, "every_n_steps and every_n_minutes are both null"),
        ({"every_n_steps": 0}, "every_n_steps is 0; it must be a whole number, 1 or more"),
        ({"keep_last": 0}, "keep_last is 0; it must be a whole number, 1 or more"),
        ({"keep_best": -1}, "keep_best is -1; it must be a whole number, 0 or more"),
        ({"every_n_minutes": 0}, "every_n_minutes is 0; it must be above 0"),
    ],
)
def test_intervals_and_numbers_out_of_range(options, text):
    assert_user_error(text, Checkpoints, **options)
