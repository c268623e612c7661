"""Checkpoint policies, full disks and damaged files, in this process: training through the command line's `main`."""

import json
import resource
import shutil

import pytest
import torch
from helpers import write_tokens
from integration.tiny import scalars, write_experiment

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.main import main
from aim_lightning.runs.directory import list_checkpoints, newest_checkpoint, step_of

pytestmark = pytest.mark.usefixtures("own_signals")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def experiment(place):
    return write_experiment(place)


@pytest.fixture(scope="module")
def fit(place, experiment):
    def call(run, *options):
        code = main(["fit", "--config", str(experiment), "--run", run, *map(str, options)])
        return code, place / "runs" / "tiny" / run

    return call


@pytest.fixture(scope="module")
def whole(fit):
    code, run_dir = fit("whole")
    assert code == 0
    return run_dir


def steps(run_dir):
    return sorted(step_of(path) for path in list_checkpoints(run_dir))


def assert_same(run_dir, other):
    one, two = (read_checkpoint(newest_checkpoint(path)) for path in (run_dir, other))
    assert one["trainer"]["global_step"] == two["trainer"]["global_step"] == 22
    for name, value in one["network"].items():
        assert torch.equal(value, two["network"][name]), name
    series = [{t: v for t, v in scalars(path).items() if not t.startswith("perf/")} for path in (run_dir, other)]
    assert series[0] == series[1]


def options(**values):
    return [text for name, value in values.items() for text in (f"--callbacks.checkpoints.{name}", str(value))]


def test_the_best_stay_in_addition_to_the_latest_also_over_a_restart(fit, whole, capfd):
    policy = options(every_n_steps=4, keep_last=1, keep_best=2)
    val = dict(scalars(whole)["val/loss"])
    best = sorted(sorted(val, key=val.get)[:2])
    assert set(val) == {6, 12, 18}
    code, run_dir = fit("best", *policy)
    assert code == 0 and steps(run_dir) == sorted({*best, 22})
    assert f"best checkpoints by val/loss: step {min(val, key=val.get)}" in capfd.readouterr().out
    code, cut = fit("best_cut", *policy, "--trainer.max_steps", 13, "--model.optimizer.schedule", "constant")
    assert code == 0 and 13 in steps(cut)
    code, cut = fit("best_cut", *policy, "--model.optimizer.schedule", "constant")
    val = dict(scalars(cut)["val/loss"])
    assert code == 0 and steps(cut) == sorted({*sorted(val, key=val.get)[:2], 22})
    assert_same(run_dir, whole)


def test_another_monitor_starts_again_and_an_unknown_one_is_an_error(fit, capfd):
    code, run_dir = fit("monitor", *options(keep_best=1, keep_last=1, monitor="val/bits_per_code", mode="max"))
    val = dict(scalars(run_dir)["val/bits_per_code"])
    assert code == 0 and steps(run_dir) == sorted({max(val, key=val.get), 22})
    code, _ = fit("unknown", *options(keep_best=1, monitor="val/fid"))
    assert code == 2 and "monitor: no validation logs val/fid; use one of: " in capfd.readouterr().err


def test_minutes_alone(fit, whole):
    code, run_dir = fit("minutes", *options(every_n_steps="null", every_n_minutes=1e-6, keep_last=9))
    assert code == 0 and steps(run_dir) == [10, 20, 22]
    assert_same(run_dir, whole)


CASES = [
    ({"every_n_steps": "null"}, "both null"),
    ({"every_n_minutes": 0}, "must be above 0"),
    ({"keep_last": 0}, "must be at least 1"),
    ({"keep_best": -1}, "must be at least 0"),
]


@pytest.mark.parametrize(("values", "word"), CASES)
def test_policies_that_make_no_sense(fit, capfd, values, word):
    assert fit("nonsense", *options(**values))[0] == 2
    assert word in capfd.readouterr().err


@pytest.fixture
def small_files(whole):
    """Files cannot grow to the size of a checkpoint, as on a full disk."""
    size = newest_checkpoint(whole).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on=True):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 4, before[1]) if on else before)

    yield limit
    limit(False)


def test_a_full_disk_keeps_the_old_checkpoint_and_logs_it(fit, whole, small_files, capfd):
    code, run_dir = fit("full", "--trainer.max_steps", 8, "--model.optimizer.schedule", "constant")
    assert code == 0 and steps(run_dir) == [4, 8]
    small_files()
    code, run_dir = fit("full", "--model.optimizer.schedule", "constant")
    small_files(False)
    out, err = capfd.readouterr()
    assert code == 2 and steps(run_dir) == [4, 8]
    assert out.count("warning: checkpoint") == 3  # after 12, 16 and 20 steps; the last one insists
    assert "step=00000012.ckpt could not be written (File too large" in out and "step=00000008.ckpt is kept" in out
    assert "step=00000022.ckpt could not be written" in err and "run the same command again" in err
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if path.name[0] == "."] == []
    code, run_dir = fit("full", "--model.optimizer.schedule", "constant")
    assert code == 0 and steps(run_dir)[-1] == 22
    losses = scalars(run_dir)["train/loss"]
    assert [step for step, _ in losses] == list(range(1, 23))


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "flipped":
        data[len(data) // 2] ^= 1  # within the weights: only the checksum shows it
    path.write_bytes(data if kind == "flipped" else data[: len(data) // 2] if kind == "truncated" else b"")


@pytest.mark.parametrize("kind", ["flipped", "truncated", "empty"])
def test_a_damaged_newest_one_is_named_and_set_aside(place, fit, whole, capfd, kind):
    run_dir = whole.with_name(kind)
    shutil.copytree(whole, run_dir)
    (run_dir / "results.json").unlink()
    damage(newest_checkpoint(run_dir), kind)
    half = run_dir / "checkpoints" / ".step=00000021.ckpt.77-abcd.tmp"  # of a save that was killed
    half.touch()
    code, _ = fit(kind, *options(keep_last=1))
    assert not half.exists()
    out = capfd.readouterr().out
    assert code == 0 and "ignoring damaged checkpoint" in out and "step=00000022.ckpt" in out
    assert "training from step 20" in out
    assert steps(run_dir) == [22] and (run_dir / "checkpoints" / "step=00000022.ckpt.damaged").exists()
    assert_same(run_dir, whole)


def test_starts_and_changes_are_recorded(fit, whole):
    run_dir = whole.with_name("recorded")
    shutil.copytree(whole, run_dir)
    newest_checkpoint(run_dir).unlink()
    code, _ = fit("recorded", "--trainer.log_every_n_steps", 2)
    assert code == 0
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    assert [(line["action"], line["step"]) for line in lines] == [("fresh", 0), ("continue", 20)]
    assert lines[1]["checkpoint"] == "step=00000020.ckpt" and lines[0]["changes"] == []
    assert "trainer.log_every_n_steps was 1, is 2" in lines[1]["changes"]


def test_other_rows_at_the_same_path_stop_a_run(tmp_path, capfd):
    """Rows 61 -> 26: an epoch of 7 steps becomes one of 3, and the run stood at the 6th of the third."""
    experiment, run_dir = write_experiment(tmp_path), tmp_path / "runs" / "tiny" / "main"

    def fit(*more):
        schedule = ("--model.optimizer.schedule", "constant", *options(every_n_steps=20))
        return main(["fit", "--config", str(experiment), *schedule, *map(str, more)])

    assert fit("--trainer.max_steps", 20) == 0
    content = read_checkpoint(newest_checkpoint(run_dir))
    assert content["data"]["rows"] == 61 and content["data"]["steps"] == 20 and content["cursor"]["batch"] == 6
    shutil.rmtree(tmp_path / "tokens" / "train")
    write_tokens(tmp_path / "tokens" / "train", [26], views=2, seed=5)
    before = sorted(path.name for path in run_dir.rglob("*"))
    assert fit("--trainer.max_steps", 27) == 2
    err = capfd.readouterr().err
    assert "data had 61 rows" in err and "has 26 rows" in err and "--allow_changes true" in err
    assert sorted(path.name for path in run_dir.rglob("*")) == before
    assert fit("--trainer.max_steps", 27, "--allow_changes", "true") == 0
    assert [step for step, _ in scalars(run_dir)["train/loss"]] == list(range(1, 28))
    last = json.loads((run_dir / "history.jsonl").read_text().splitlines()[-1])
    assert any(line.startswith("data had 61 rows") for line in last["changes"])
    content = read_checkpoint(newest_checkpoint(run_dir))
    assert content["cursor"] == {"epoch": 5, "batch": 1} and content["data"]["steps"] == 27


def test_another_model_in_spite_of_all_is_one_line(fit, whole, capfd):
    run_dir = whole.with_name("other_model")
    shutil.copytree(whole, run_dir)
    newest_checkpoint(run_dir).unlink()
    before = sorted(path.name for path in run_dir.rglob("*"))
    code, _ = fit("other_model", "--model.network.n_layer", 1, "--model.network.d_state", 4, "--allow_changes", "true")
    last = capfd.readouterr().err.splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and "step=00000020.ckpt does not fit the AiMModule" in last
    assert "surplus: network.backbone.layers.1." in last and "other shape: network.backbone.layers.0." in last
    assert sorted(path.name for path in run_dir.rglob("*")) == before


STOP = """
callbacks:
  stop:
    class_path: lightning.pytorch.callbacks.EarlyStopping
    init_args: {monitor: val/loss, mode: min, patience: 1, min_delta: 9.0}
"""


def test_training_that_ends_before_its_last_step_logs_it_and_continues(place, fit, whole, capfd):
    code, run_dir = fit("early", "--trainer.max_time", "00:00:00:00")
    out = capfd.readouterr().out
    assert code == 0 and "is complete" not in out and "early was ended by trainer.max_time after 0 steps" in out
    assert "next: a longer --trainer.max_time, which counts all starts of a run; " in out
    (place / "stop.yaml").write_text(STOP)
    code, run_dir = fit("early", "--config", place / "stop.yaml")
    out = capfd.readouterr().out
    assert code == 0 and "is complete" not in out and steps(run_dir)[-1] == 12
    assert "early was ended by a callback, such as early stopping, after 12 steps" in out
    assert "next: make train EXP=tiny RUN=early goes on" in out
    code, run_dir = fit("early", *options(keep_last=9))
    assert code == 0 and "early is complete: 22 steps" in capfd.readouterr().out
    assert_same(run_dir, whole)


def test_results_of_an_earlier_step_do_not_count_as_those_of_the_end(fit, whole, capfd):
    run_dir = whole.with_name("results")
    shutil.copytree(whole, run_dir)
    assert fit("results")[0] == 0 and "validating" not in capfd.readouterr().out
    results = json.loads((run_dir / "results.json").read_text())
    results["protocol"]["step"], results["metrics"]["val/loss"] = 20, 99.0
    (run_dir / "results.json").write_text(json.dumps(results))
    assert fit("results")[0] == 0 and "validating" in capfd.readouterr().out
    assert json.loads((run_dir / "results.json").read_text())["metrics"]["val/loss"] < 10
    assert fit("results")[0] == 0 and "validating" not in capfd.readouterr().out


SCALED = """
trainer:
  plugins:
    - class_path: lightning.pytorch.plugins.MixedPrecision
      init_args:
        precision: 16-mixed
        device: cpu
        scaler: {class_path: torch.amp.GradScaler, init_args: {device: cpu, init_scale: 1.0e+6, growth_interval: 5}}
"""


def test_the_loss_scaler_continues(place, experiment, fit):
    """fp16 on processors, with a scale that overflows at first and grows later."""
    extra = place / "scaled.yaml"
    extra.write_text(SCALED)
    every = options(keep_last=9)
    code, run_dir = fit("scaled", "--config", extra, *every)
    assert code == 0
    scaler = [read_checkpoint(path)["trainer"]["MixedPrecision"] for path in reversed(list_checkpoints(run_dir))]
    assert len({state["scale"] for state in scaler}) > 1
    cut = run_dir.with_name("scaled_cut")
    shutil.copytree(run_dir, cut)
    for path in list_checkpoints(cut)[:-1]:
        path.unlink()
    assert fit("scaled_cut", "--config", extra, *every)[0] == 0
    assert_same(cut, run_dir)
    assert read_checkpoint(newest_checkpoint(cut))["trainer"]["MixedPrecision"] == scaler[-1]


def test_skipped_records_are_logged_counted_and_resumed_to_the_bit(tmp_path, capfd):
    """A corrupt record: stop and name it, skip it, stop past the limit, and continue where that was."""
    experiment, root = write_experiment(tmp_path), tmp_path / "runs" / "tiny"
    shard = tmp_path / "tokens" / "train" / "tokens-000001.tar"
    data = bytearray(shard.read_bytes())
    data[512 + 200] ^= 1  # in the codes of its only record
    shard.write_bytes(data)

    def fit(run, *options):
        return main(["fit", "--config", str(experiment), "--run", run, *map(str, options)])

    skip = ("--data.on_corrupt", "skip")
    assert fit("stopped") == 2
    assert "tokens-000001.tar, record 0000: its sha256" in capfd.readouterr().err
    assert fit("whole", *skip) == 0
    counts = scalars(root / "whole")["data/replaced_rows"]
    values = [value for _, value in counts]
    assert [step for step, _ in counts] == list(range(1, 23)) and values == sorted(values)
    assert 3 * 15 < values[-1] <= 4 * 20  # most of 20 rows in each of the epochs begun
    assert fit("limited", *skip, "--data.skip_limit", 15) == 2
    err = capfd.readouterr().err.splitlines()[-1]
    assert "16 rows of this epoch" in err and "more than data.skip_limit 15" in err
    assert fit("limited", *skip, "--data.skip_limit", 15) == 2  # the count goes on where it was
    assert capfd.readouterr().err.splitlines()[-1] == err
    assert fit("limited", *skip) == 0
    assert_same(root / "limited", root / "whole")
