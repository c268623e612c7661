"""A checkpoint that cannot be written, on every rank."""

from pathlib import Path
from types import SimpleNamespace

from helpers import assert_user_error

from aim_lightning.callbacks.evaluation.training_evaluation import TrainingEvaluation
from aim_lightning.callbacks.training.checkpoints import write_or_tell
from aim_lightning.checkpoint.io import CheckpointNotWritten
from aim_lightning.utils.errors import UserError


def rank(number, sent, fault=None, step=1):
    """What `write_or_tell` needs of a trainer: rank 0 writes and broadcasts; `sent` collects its values."""

    def save(content, path):
        if number == 0 and fault:
            raise fault
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
    sent, fault = [], CheckpointNotWritten("a.ckpt could not be written")
    answers = [write_or_tell(rank(number, sent, fault), tmp_path / "a.ckpt") for number in (0, 1)]
    assert answers == [str(fault)] * 2
    assert [write_or_tell(rank(number, sent), tmp_path / "a.ckpt") for number in (0, 1)] == [None] * 2


def test_content_that_cannot_be_loaded_ends_all_ranks(tmp_path):
    sent = []
    for number in (0, 1):
        assert_user_error("is a Path", write_or_tell, rank(number, sent, UserError("a is a Path")), tmp_path / "a.ckpt")


def test_the_best_checkpoints_stay_when_a_better_one_cannot_be_written(tmp_path, capsys):
    evaluations = [TrainingEvaluation(every_n_steps=1, keep_best=1) for _ in range(2)]
    sent = []
    for evaluation in evaluations:
        evaluation.features, evaluation.run_dir = SimpleNamespace(metric_name="fd"), str(tmp_path)
    for step, value, fault in ((1, 5.0, None), (2, 3.0, CheckpointNotWritten("no space left"))):
        for number, evaluation in enumerate(evaluations):
            evaluation._keep_best(rank(number, sent, fault, step), {"fd": value})
    assert [[entry[1] for entry in evaluation.best] for evaluation in evaluations] == [[1], [1]]
    assert [file.name for file in (tmp_path / "best").iterdir()] == ["fd_5k=5.0000-step=00000001.ckpt"]
    assert "warning: no space left; the best ones so far stay" in capsys.readouterr().out
