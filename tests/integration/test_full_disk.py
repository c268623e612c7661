"""A disk that takes nothing at all, not only no checkpoint: training through the command line's `main`."""

import os
import resource
import signal

import pytest
from integration.tiny import scalars, write_experiment

from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.cli.main import main
from aim_lightning.runs.directory import list_checkpoints, step_of

pytestmark = pytest.mark.usefixtures("own_signals")


@pytest.fixture
def fit(tmp_path):
    experiment = write_experiment(tmp_path)

    def call(*options):
        code = main(["fit", "--config", str(experiment), *map(str, options)])
        return code, tmp_path / "runs" / "tiny" / "main"

    return call


@pytest.fixture
def full_disk(monkeypatch):
    """full_disk(5, 9): no file takes a byte from step 5 until step 9; a signal comes at `signal_at`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = Preemption.on_train_batch_start

    def arm(first, last, signal_at=None):
        def hook(self, trainer, *rest):
            if trainer.global_step == first:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            if trainer.global_step == last:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            if trainer.global_step == signal_at:
                os.kill(os.getpid(), signal.SIGUSR1)
            original(self, trainer, *rest)

        monkeypatch.setattr(Preemption, "on_train_batch_start", hook)

    yield arm
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def no_signal(monkeypatch):
    from aim_lightning.cluster import signals

    monkeypatch.setattr(signals, "_received", signals.NONE)


def test_a_disk_that_has_room_again_leaves_no_trace(fit, full_disk, capsys):
    full_disk(5, 10)
    code, run = fit()
    out, err = capsys.readouterr()
    assert code == 0, err
    assert [step_of(path) for path in reversed(list_checkpoints(run))] == [16, 20, 22]
    assert out.count("step=00000008.ckpt could not be written (File too large") == 1
    assert "step=00000004.ckpt is kept" in out and err.count("its events wait for room") == 1
    series = scalars(run)
    assert [step for step, _ in series["train/loss"]] == list(range(1, 23))
    assert [step for step, _ in series["val/loss"]] == [6, 12, 18]


def test_a_disk_that_stays_full_ends_in_one_line_and_a_later_start_goes_on(fit, full_disk, capsys):
    full_disk(5, None)
    code, run = fit("--trainer.max_steps", 9, "--model.optimizer.schedule", "constant")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    assert "step=00000009.ckpt could not be written" in err.splitlines()[-1] and "make room" in err
    full_disk(None, None)
    code, run = fit("--model.optimizer.schedule", "constant")
    assert code == 0 and "training from step 4" in capsys.readouterr().out
    assert [step for step, _ in scalars(run)["train/loss"]] == list(range(1, 23))


def test_a_warning_on_a_full_disk_still_stops_training_so_that_the_job_is_requeued(fit, full_disk, no_signal, capsys):
    full_disk(5, None, signal_at=7)
    code, _ = fit()
    out, err = capsys.readouterr()
    assert code == 138 and "Traceback" not in err
    assert "no checkpoint of step 7 was written, the next start goes back to the one before" in out
    assert "timings.json cannot be written (File too large)" in err


def test_a_checkpoint_that_cannot_be_made_at_all_does_not_lose_the_stop(fit, full_disk, no_signal, monkeypatch, capsys):
    from aim_lightning.callbacks.training.checkpoints import Checkpoints

    def broken(*_, **__):
        raise RuntimeError("a rank is gone")

    full_disk(None, None, signal_at=3)
    monkeypatch.setattr(Checkpoints, "save", broken)
    code, _ = fit()
    assert code == 138 and "a rank is gone" in capsys.readouterr().err


def test_a_stop_before_the_first_step_names_no_checkpoint(fit, full_disk, no_signal, capsys):
    full_disk(None, None, signal_at=0)
    code, run = fit()
    out = capsys.readouterr().out
    assert code == 138 and "no step was done yet, the next start begins at step 0" in out
    assert "is in a checkpoint" not in out and not list_checkpoints(run)
