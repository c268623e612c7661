"""Checkpoint policies, full disks, damaged files and compilation: trainings in this process."""

import json
import os
import shutil
import signal

import pytest
import torch
from helpers import flip_bit, write_tokens
from integration.tiny import Experiment, assert_same, scalars, write_experiment

from aim_lightning.callbacks.training import resume_state
from aim_lightning.callbacks.training.checkpoints import Checkpoints
from aim_lightning.callbacks.training.preemption import Preemption
from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.main import main
from aim_lightning.cluster import signals
from aim_lightning.runs.directory import list_checkpoints, newest_checkpoint, step_of

pytestmark = pytest.mark.usefixtures("own_signals")
CONSTANT = ("--model.optimizer.schedule", "constant")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment(write_experiment(tmp_path_factory.mktemp("resume")))


@pytest.fixture(scope="module")
def reference(experiment):
    """Return the run that others are compared with; nothing interrupts it."""
    return experiment.fit("reference")


@pytest.fixture
def fail(experiment, capsys):
    """Return the function that trains, expects exit code 2, and returns standard output and error."""

    def call(run, *words):
        assert main(experiment.words("fit", run, *words)) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return out, err

    return call


def steps(run_dir):
    return sorted(step_of(path) for path in list_checkpoints(run_dir))


def curve_steps(run_dir, tag="train/loss"):
    return [step for step, _ in scalars(run_dir)[tag]]


def files(run_dir):
    return sorted(path.name for path in run_dir.rglob("*"))


def options(**values):
    return [text for name, value in values.items() for text in (f"--callbacks.checkpoints.{name}", str(value))]


def best(run_dir, tag, count, sign=1):
    """Return the steps with the lowest values of a curve (the highest for sign -1)."""
    return [step for step, _ in sorted(scalars(run_dir)[tag], key=lambda point: sign * point[1])[:count]]


def test_the_best_stay_in_addition_to_the_latest_also_over_a_restart(experiment, reference, capsys):
    policy = options(every_n_steps=4, keep_last=1, keep_best=2)
    run_dir = experiment.fit("best", *policy)
    assert curve_steps(reference, "val/loss") == [6, 12, 18]
    assert steps(run_dir) == sorted({*best(reference, "val/loss", 2), 22})
    assert f"best checkpoints by val/loss: step {best(reference, 'val/loss', 1)[0]}" in capsys.readouterr().out
    assert 13 in steps(experiment.fit("best_cut", *policy, "--trainer.max_steps", 13, *CONSTANT))
    cut = experiment.fit("best_cut", *policy, *CONSTANT)
    assert steps(cut) == sorted({*best(cut, "val/loss", 2), 22})
    assert_same(run_dir, reference)


def test_another_monitor_starts_again_and_an_unknown_one_is_an_error(experiment, fail):
    policy = options(keep_best=1, keep_last=1, monitor="val/bits_per_code", mode="max")
    run_dir = experiment.fit("monitor", *policy)
    assert steps(run_dir) == sorted({*best(run_dir, "val/bits_per_code", 1, sign=-1), 22})
    _, err = fail("unknown", *options(keep_best=1, monitor="val/fid"))
    assert "monitor: no validation logs val/fid; use one of: " in err


def test_minutes_alone(experiment, reference):
    run_dir = experiment.fit("minutes", *options(every_n_steps="null", every_n_minutes=1e-6, keep_last=9))
    assert steps(run_dir) == [10, 20, 22]
    assert_same(run_dir, reference)


@pytest.fixture
def full_disk(file_limit, monkeypatch):
    """Return a function: no file takes a byte from step `first` until step `last`; a signal comes at `signal_at`."""
    original = Preemption.on_train_batch_start
    monkeypatch.setattr(signals, "_received", signals.NONE)

    def arm(first, last=None, signal_at=None):
        def hook(self, trainer, *rest):
            if trainer.global_step == first:
                file_limit(0)
            if trainer.global_step == last:
                file_limit(None)
            if trainer.global_step == signal_at:
                os.kill(os.getpid(), signal.SIGUSR1)
            original(self, trainer, *rest)

        monkeypatch.setattr(Preemption, "on_train_batch_start", hook)

    return arm


def test_a_full_disk_keeps_the_old_checkpoint_and_logs_it(experiment, reference, fail, file_limit):
    assert steps(experiment.fit("full", "--trainer.max_steps", 8, *CONSTANT)) == [4, 8]
    file_limit(newest_checkpoint(reference).stat().st_size * 3 // 4)
    out, err = fail("full", *CONSTANT)
    file_limit(None)
    run_dir = experiment.runs / "full"
    assert steps(run_dir) == [4, 8]
    assert out.count("warning: checkpoint") == 3  # after 12, 16 and 20 steps; the last one insists
    assert "step=00000012.ckpt could not be written (File too large" in out and "step=00000008.ckpt is kept" in out
    assert "step=00000022.ckpt could not be written" in err and "run the same command again" in err
    assert not list((run_dir / "checkpoints").glob(".*"))
    experiment.fit("full", *CONSTANT)
    assert steps(run_dir)[-1] == 22 and curve_steps(run_dir) == list(range(1, 23))


def test_a_disk_that_has_room_again_leaves_no_trace(experiment, full_disk, capsys):
    full_disk(5, 10)
    run_dir = experiment.fit("room")
    out, err = capsys.readouterr()
    assert steps(run_dir) == [16, 20, 22]
    assert out.count("step=00000008.ckpt could not be written (File too large") == 1
    assert "step=00000004.ckpt is kept" in out and err.count("its events wait for room") == 1
    assert curve_steps(run_dir) == list(range(1, 23)) and curve_steps(run_dir, "val/loss") == [6, 12, 18]


def test_a_disk_that_stays_full_is_one_line_and_later_starts_continue(experiment, fail, full_disk, file_limit, capsys):
    full_disk(5)
    _, err = fail("stays_full", "--trainer.max_steps", 9, *CONSTANT)
    file_limit(None)
    assert "step=00000009.ckpt could not be written" in err.splitlines()[-1] and "free disk space" in err
    full_disk(None)
    run_dir = experiment.fit("stays_full", *CONSTANT)
    assert "training from step 4" in capsys.readouterr().out and curve_steps(run_dir) == list(range(1, 23))


def test_validation_logs_its_metrics_before_it_writes_them(experiment, reference, capsys):
    run_dir = experiment.copy("reference", "unwritable")
    (run_dir / "results.json").unlink()
    (run_dir / "results.json").mkdir()
    assert main(experiment.words("validate", "unwritable")) == 2
    out, err = capsys.readouterr()
    assert "val/loss" in out and "results.json is not readable JSON" in err.splitlines()[-1]


def test_a_signal_on_a_full_disk_still_stops_training_so_that_the_job_is_requeued(experiment, full_disk, capsys):
    full_disk(5, signal_at=7)
    assert main(experiment.words("fit", "signalled")) == 138
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "timings.json cannot be written (File too large)" in err
    assert "no checkpoint of step 7 was written, the next start goes back to the one before" in out


def test_a_checkpoint_that_cannot_be_written_does_not_lose_the_stop(experiment, full_disk, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("a rank is gone")

    full_disk(None, signal_at=3)
    monkeypatch.setattr(Checkpoints, "save", broken)
    assert main(experiment.words("fit", "no_checkpoint")) == 138
    assert "a rank is gone" in capsys.readouterr().err


def test_a_stop_before_the_first_step_names_no_checkpoint(experiment, full_disk, capsys):
    full_disk(None, signal_at=0)
    assert main(experiment.words("fit", "no_step")) == 138
    out = capsys.readouterr().out
    assert "no step was done yet, the next start begins at step 0" in out
    assert "is in a checkpoint" not in out and not list_checkpoints(experiment.runs / "no_step")


DAMAGES = {
    "flipped": lambda path, size: flip_bit(path, size // 2),  # within the weights: only the checksum shows it
    "truncated": lambda path, size: os.truncate(path, size // 2),
    "empty": lambda path, size: os.truncate(path, 0),
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_a_damaged_newest_one_is_named_and_set_aside(experiment, reference, capsys, fault):
    run_dir = experiment.copy("reference", fault)
    (run_dir / "results.json").unlink()
    newest = newest_checkpoint(run_dir)
    DAMAGES[fault](newest, newest.stat().st_size)
    temporary = run_dir / "checkpoints" / ".step=00000021.ckpt.77-abcd.tmp"  # of a save that was killed
    temporary.touch()
    experiment.fit(fault, *options(keep_last=1))
    out = capsys.readouterr().out
    assert "ignoring damaged checkpoint" in out and "step=00000022.ckpt" in out and "training from step 20" in out
    assert steps(run_dir) == [22] and (run_dir / "checkpoints" / "step=00000022.ckpt.damaged").exists()
    assert not temporary.exists()
    assert_same(run_dir, reference)


def test_starts_and_changes_are_recorded(experiment, reference, monkeypatch, capsys):
    run_dir = experiment.copy("reference", "recorded", step=20)
    monkeypatch.setattr(resume_state, "rounding", lambda device: {"torch": "3.0", "device": device.type})
    experiment.fit("recorded", "--trainer.log_every_n_steps", 2)
    changed = f"torch was '{torch.__version__}', is '3.0'"
    assert f"this run continues within rounding, not bit for bit: {changed}\n" in capsys.readouterr().out
    assert read_checkpoint(newest_checkpoint(run_dir))["trainer"]["rounding"] == {"torch": "3.0", "device": "cpu"}
    first, second = (json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines())
    assert (first["action"], first["step"], first["changes"]) == ("fresh", 0, [])
    assert (second["action"], second["step"], second["checkpoint"]) == ("continue", 20, "step=00000020.ckpt")
    assert "trainer.log_every_n_steps was 1, is 2" in second["changes"]


def test_the_rounding_of_a_gpu_depends_on_the_tiles_of_its_kernels(monkeypatch):
    tiling = pytest.importorskip("aim_lightning.models.aim.fused.tiling", reason="Triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    before = resume_state.rounding(torch.device("cuda"))
    monkeypatch.setitem(tiling.TILING["norm_forward"], "num_warps", 8)
    after = resume_state.rounding(torch.device("cuda"))
    assert before["device"] == "NVIDIA H200" and {"torch", "triton"} < before.keys()
    assert [name for name in before if before[name] != after[name]] == ["tiles"]


def test_other_rows_at_the_same_path_stop_a_run(tmp_path, capsys):
    """Change 61 rows to 26: an epoch of 7 steps becomes one of 3, and the run is in the 6th step of its third one."""
    experiment = Experiment(write_experiment(tmp_path))
    policy = (*CONSTANT, *options(every_n_steps=20))
    run_dir = experiment.fit("main", *policy, "--trainer.max_steps", 20)
    content = read_checkpoint(newest_checkpoint(run_dir))
    assert content["data"]["rows"] == 61 and content["data"]["steps"] == 20 and content["cursor"]["batch"] == 6
    shutil.rmtree(tmp_path / "tokens" / "train")
    write_tokens(tmp_path / "tokens" / "train", [26], views=2, seed=5)
    before, longer = files(run_dir), (*policy, "--trainer.max_steps", 27)
    assert main(experiment.words("fit", "main", *longer)) == 2
    err = capsys.readouterr().err
    assert "data had 61 rows" in err and "has 26 rows" in err and "--allow_changes true" in err
    assert files(run_dir) == before
    experiment.fit("main", *longer, "--allow_changes", "true")
    assert curve_steps(run_dir) == list(range(1, 28))
    last = json.loads((run_dir / "history.jsonl").read_text().splitlines()[-1])
    assert any(line.startswith("data had 61 rows") for line in last["changes"])
    content = read_checkpoint(newest_checkpoint(run_dir))
    assert content["cursor"] == {"epoch": 5, "batch": 1} and content["data"]["steps"] == 27


def test_another_model_although_changes_are_allowed_is_one_line(experiment, reference, fail):
    run_dir = experiment.copy("reference", "other_model", step=20)
    before, sizes = files(run_dir), ("--model.network.n_layer", 1, "--model.network.d_state", 4)
    last = fail("other_model", *sizes, "--allow_changes", "true")[1].splitlines()[-1]
    assert last.startswith("error: ") and "step=00000020.ckpt does not fit the AiMModule" in last
    assert "surplus: network.backbone.layers.1." in last and "other shape: network.backbone.layers.0." in last
    assert files(run_dir) == before


STOP = """
callbacks:
  stop:
    class_path: lightning.pytorch.callbacks.EarlyStopping
    init_args: {monitor: val/loss, mode: min, patience: 1, min_delta: 9.0}
"""


def test_a_run_that_max_time_ended_is_finished_until_it_gets_more(experiment, capsys):
    limited = [*CONSTANT, "--trainer.max_steps", 10**6, "--trainer.max_time"]
    run_dir = experiment.fit("timed", *limited, "{milliseconds: 500}")
    step = step_of(newest_checkpoint(run_dir))
    assert 0 < step < 10**6
    experiment.fit("timed", *limited, "{milliseconds: 500}")
    assert f"timed is finished (step {step})" in capsys.readouterr().out
    experiment.fit("timed", *limited, "{milliseconds: 900}")
    assert step_of(newest_checkpoint(run_dir)) > step


def test_training_that_ends_before_its_last_step_logs_it_and_continues(experiment, reference, capsys):
    experiment.fit("early", "--trainer.max_time", "00:00:00:00")
    out = capsys.readouterr().out
    assert "is complete" not in out and "early was ended by trainer.max_time after 0 steps" in out
    assert "next: a longer --trainer.max_time, which counts all starts of a run; " in out
    stop = experiment.file.with_name("stop.yaml")
    stop.write_text(STOP)
    run_dir = experiment.fit("early", "--config", stop)
    out = capsys.readouterr().out
    assert "is complete" not in out and steps(run_dir)[-1] == 12
    assert "early was ended by a callback, such as early stopping, after 12 steps" in out
    assert "next: make train EXP=tiny RUN=early goes on" in out
    experiment.fit("early", *options(keep_last=9))
    assert "early is complete: 22 steps" in capsys.readouterr().out
    assert_same(run_dir, reference)


def test_results_of_an_earlier_step_do_not_count_as_those_of_the_end(experiment, reference, capsys):
    path = experiment.copy("reference", "results") / "results.json"

    def validated():
        experiment.fit("results")
        return "validating" in capsys.readouterr().out

    assert not validated()
    path.unlink()  # stopped before its results
    assert validated()
    results = json.loads(path.read_text())
    results["protocol"]["step"], results["metrics"]["val/loss"] = 20, 99.0
    path.write_text(json.dumps(results))
    assert validated() and json.loads(path.read_text())["metrics"]["val/loss"] < 10
    assert not validated()


SCALED = """
trainer:
  plugins:
    - class_path: lightning.pytorch.plugins.MixedPrecision
      init_args:
        precision: 16-mixed
        device: cpu
        scaler: {class_path: torch.amp.GradScaler, init_args: {device: cpu, init_scale: 1.0e+6, growth_interval: 5}}
"""


def test_the_loss_scaler_continues(experiment):
    """Train in fp16 on a CPU with a scale that overflows at first and grows later."""
    extra = experiment.file.with_name("scaled.yaml")
    extra.write_text(SCALED)
    words = ("--config", extra, *options(keep_last=9))
    run_dir = experiment.fit("scaled", *words)
    scalers = {step_of(path): read_checkpoint(path)["trainer"]["MixedPrecision"] for path in list_checkpoints(run_dir)}
    assert len({state["scale"] for state in scalers.values()}) > 1
    cut = experiment.copy("scaled", "scaled_cut", step=min(scalers))
    experiment.fit("scaled_cut", *words)
    assert_same(cut, run_dir)
    assert read_checkpoint(newest_checkpoint(cut))["trainer"]["MixedPrecision"] == scalers[22]


def test_skipped_records_are_logged_counted_and_resumed_to_the_bit(tmp_path, capsys):
    """Corrupt a record: it is named and stops training, is skipped, and stops it past the limit, where it continues."""
    experiment = Experiment(write_experiment(tmp_path))
    flip_bit(tmp_path / "tokens" / "train" / "tokens-000001.tar", 512 + 200)  # in the codes of its only record

    def fail(run, *words):
        assert main(experiment.words("fit", run, *words)) == 2
        return capsys.readouterr().err.splitlines()[-1]

    skip = ("--data.on_corrupt", "skip")
    assert "tokens-000001.tar, record 0000: its sha256" in fail("stopped")
    reference = experiment.fit("reference", *skip)
    counts = [value for _, value in scalars(reference)["data/replaced_rows"]]
    assert curve_steps(reference, "data/replaced_rows") == list(range(1, 23)) and counts == sorted(counts)
    assert 3 * 15 < counts[-1] <= 4 * 20  # most of 20 rows in each of the epochs begun
    error = fail("limited", *skip, "--data.skip_limit", 15)
    assert "16 rows of this epoch" in error and "more than data.skip_limit 15" in error
    assert fail("limited", *skip, "--data.skip_limit", 15) == error  # the count continues
    assert_same(experiment.fit("limited", *skip), reference)


@pytest.mark.long
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_training_is_the_same(experiment):
    # Dropout would draw other values.
    sizes = ("--model.network.n_layer", 1, "--model.network.token_dropout", 0, "--model.network.mixer_dropout", 0)
    frames, weights = torch._dynamo.utils.counters["frames"], {}
    for name in ("false", "true"):
        before = frames["ok"]
        length = ("--trainer.max_steps", 2, "--trainer.limit_val_batches", 0)
        run_dir = experiment.fit(f"compile_{name}", "--model.compile", name, *sizes, *length)
        assert (frames["ok"] > before) is (name == "true")
        weights[name] = read_checkpoint(newest_checkpoint(run_dir))["network"]
    assert weights["true"].keys() == weights["false"].keys()
    for name, value in weights["false"].items():
        assert torch.allclose(weights["true"][name], value, rtol=1e-3, atol=1e-4), name
