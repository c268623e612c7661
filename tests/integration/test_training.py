"""Training in real processes: exact continuation, two processes, TensorBoard's files, faults."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from helpers import TINY, write_tokens
from integration.tiny import scalars, write_experiment

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.runs.directory import newest_checkpoint

pytestmark = pytest.mark.slow
TIMED = ("perf/",)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("experiment")


@pytest.fixture(scope="module")
def experiment(place):
    return write_experiment(place)


def fit(experiment, run, *options, wait=True):
    command = [sys.executable, "-m", "aim_lightning", "fit", "--config", experiment, "--run", run, *options]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not wait:
        return process
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


@pytest.fixture(scope="module")
def whole(place, experiment):
    """The uninterrupted run that others are held against."""
    code, output = fit(experiment, "whole")
    assert code == 0, output
    assert "next: make validate EXP=tiny RUN=whole" in output
    return place / "runs" / "tiny" / "whole"


def copy_run(run_dir, name, keep=None):
    """A copy of a finished run; with `keep` only its oldest checkpoints, as if it had been killed after them."""
    copy = run_dir.with_name(name)
    shutil.copytree(run_dir, copy)
    for path in sorted((copy / "checkpoints").iterdir())[keep:] if keep else []:
        path.unlink()
    return copy


@pytest.fixture(scope="module")
def plain(place, experiment):
    """Without dropout, whose draws differ by the size of micro-batches: (its options, its directory)."""
    options = ["--model.network.token_dropout", "0", "--model.network.mixer_dropout", "0"]
    code, output = fit(experiment, "plain", *options)
    assert code == 0, output
    return options, place / "runs" / "tiny" / "plain"


def final(run_dir):
    content = read_checkpoint(newest_checkpoint(run_dir))
    assert content["trainer"]["global_step"] == 22
    return content


def assert_same_weights(one, other):
    for part in ("network", "ema"):
        a, b = (c[part]["network"] if part == "ema" else c[part] for c in (one, other))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), f"{part}: {name}"


def series(run_dir):
    return {tag: values for tag, values in scalars(run_dir).items() if not tag.startswith(TIMED)}


def test_a_csv_logger_works_by_its_class_path_alone(place, experiment):
    config = place / "csv.yaml"
    config.write_text(
        "include: [tiny.yaml]\nlogger: {tensorboard: null, csv: {class_path: lightning.pytorch.loggers.CSVLogger}}\n"
    )
    code, output = fit(config, "csv", "--trainer.max_steps", "6")
    assert code == 0, output
    run_dir = place / "runs" / "tiny" / "csv"
    lines = (run_dir / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"step", "train/loss", "val/loss"} <= set(lines[0].split(",")) and len(lines) > 6
    assert not list(run_dir.glob("events.out.tfevents.*"))


def test_checkpoint_has_explicit_keys_and_plain_names(whole):
    content = final(whole)
    assert set(content) == {
        "format",
        "network",
        "ema",
        "optimizers",
        "schedulers",
        "cursor",
        "data",
        "random_state",
        "configuration",
        "class_names",
        "tokenizer_hash",
        "trainer",
    }
    assert content["cursor"] == {"epoch": 3, "batch": 1} and len(content["random_state"]) == 1
    assert content["configuration"]["experiment"] == "tiny"
    assert set(content["network"]) == set(content["ema"]["network"])
    assert all(name.startswith(("backbone.", "lm_head.")) for name in content["network"])


def test_every_step_is_in_tensorboard_once(whole):
    found = series(whole)
    for tag in ("train/loss", "train/bits_per_code", "train/grad_norm"):
        assert [step for step, _ in found[tag]] == list(range(1, 23)), tag
    assert [step for step, _ in found["val/loss"]] == [6, 12, 18]
    assert {"train/learning_rate", "perf/images_per_s", "perf/tokens_per_s", "perf/model_tflops_per_s"} <= set(
        scalars(whole)
    )


def test_a_finished_run_reports_it_and_changes_nothing(whole, experiment):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    code, output = fit(experiment, "whole")
    assert code == 0 and "is finished (step 22)" in output
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


def test_changed_configuration_is_refused(whole, experiment):
    code, output = fit(experiment, "whole", "--model.label_dropout", "0.5")
    assert code == 2 and "model.init_args.label_dropout was 0.3, is 0.5" in output


def kill_after_step(process, run_dir, step):
    """SIGKILL once a checkpoint of that step or later lies there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(p.stem.split("=")[1]) >= step for p in (run_dir / "checkpoints").glob("step=*.ckpt")):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("step", [4, 12])
def test_killed_and_continued_is_the_same_to_the_bit(place, experiment, whole, step):
    run_dir = place / "runs" / "tiny" / f"killed{step}"
    process = fit(experiment, run_dir.name, wait=False)
    kill_after_step(process, run_dir, step)
    stopped = read_checkpoint(newest_checkpoint(run_dir))["trainer"]["global_step"]
    code, output = fit(experiment, run_dir.name)
    assert code == 0, output
    if stopped < 22:
        assert f"training from step {stopped}" in output
    assert_same_weights(final(run_dir), final(whole))
    assert series(run_dir) == series(whole)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(place, experiment, whole):
    run_dir = copy_run(whole, "damaged")
    newest = newest_checkpoint(run_dir)
    newest.write_bytes(newest.read_bytes()[:3000])
    code, output = fit(experiment, run_dir.name)
    assert code == 0 and "ignoring damaged checkpoint" in output and newest.name in output
    assert "training from step 20" in output
    assert_same_weights(final(run_dir), final(whole))


@pytest.mark.long
def test_two_processes_agree_with_one(place, experiment, plain):
    """Two gloo ranks, two micro-batches a step: the same rows in every global batch."""
    options, one_dir = plain
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.max_device_batch_size", "2"]
    code, output = fit(experiment, "two", *options, *ddp)
    assert code == 0, output
    two_dir = one_dir.with_name("two")
    one, two = final(one_dir), final(two_dir)
    assert len(two["random_state"]) == 2 and two["cursor"] == one["cursor"]
    for name, value in one["network"].items():
        assert torch.allclose(value, two["network"][name], atol=2e-3), name
    losses = [dict(series(run_dir)["val/loss"]) for run_dir in (one_dir, two_dir)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    # Four micro-batches on two ranks: the logged loss is that of the global batch, not of one of them.
    losses = [[value for _, value in series(run_dir)["train/loss"]] for run_dir in (one_dir, two_dir)]
    assert losses[0][:5] == pytest.approx(losses[1][:5], rel=1e-4)


@pytest.mark.long
def test_another_number_of_processes_continues_with_the_same_rows_and_dropout(place, experiment):
    """Micro-batches of two rows in both: only the order of the gradient's sum differs."""
    small = ["--data.max_device_batch_size", "2"]
    code, output = fit(experiment, "one", *small)
    assert code == 0, output
    one_dir = place / "runs" / "tiny" / "one"
    two_dir = copy_run(one_dir, "one_then_two", keep=1)
    code, output = fit(experiment, "one_then_two", *small, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert code == 0 and "training from step 16" in output and "trainer.devices" in output, output
    one, two = final(one_dir), final(two_dir)
    assert two["cursor"] == one["cursor"]
    for name, value in one["network"].items():
        assert torch.allclose(value, two["network"][name], atol=1e-4), name
    curves = [[value for _, value in series(run_dir)["val/loss"]] for run_dir in (one_dir, two_dir)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_interrupted_two_processes_continue_to_the_bit(place, experiment):
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    code, output = fit(experiment, "ddp_whole", *ddp)
    assert code == 0, output
    run_dir = copy_run(place / "runs" / "tiny" / "ddp_whole", "ddp_cut", keep=1)
    code, output = fit(experiment, run_dir.name, *ddp)
    assert code == 0 and "training from step 16" in output, output
    assert_same_weights(final(run_dir), final(place / "runs" / "tiny" / "ddp_whole"))


def test_a_second_training_is_refused_while_the_first_runs(place, experiment):
    process = fit(experiment, "leased", "--trainer.max_steps", "100000", wait=False)
    lease = place / "runs" / "tiny" / "leased" / "lease.json"
    while not (lease.exists() and lease.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    code, output = fit(experiment, "leased", "--trainer.max_steps", "100000")
    process.kill()
    process.communicate()
    assert code == 2 and f"trained by process {process.pid}" in output


def test_a_loss_that_is_not_finite_stops_with_one_line(place, experiment):
    code, output = fit(experiment, "broken", "--model.optimizer.base_learning_rate", "1e30")
    assert code == 2 and "not finite" not in output
    error = next(line for line in output.splitlines() if line.startswith("error: "))
    assert "training stops; lower model.optimizer.base_learning_rate" in error and "Traceback" not in output


def test_validate_and_results(whole, experiment, place, aim_cli):
    done = aim_cli("validate", "--config", experiment, "--run", "whole")
    assert done.returncode == 0, done.stderr
    results = json.loads((whole / "results.json").read_text())
    assert set(results) == {"format", "experiment", "run", "commit", "hardware", "protocol", "metrics"}
    assert results["experiment"] == "tiny" and "val/bits_per_code" in results["metrics"]
    assert "next: make sample EXP=tiny RUN=whole" in done.stdout


def test_the_saved_configuration_gives_the_same_result(whole, place):
    code, output = fit(whole / "config.yaml", "again")
    assert code == 0, output
    assert_same_weights(final(place / "runs" / "tiny" / "again"), final(whole))


def test_continuing_with_another_accumulation_keeps_stream_and_end(experiment, plain):
    """Out of memory, so smaller micro-batches: the same rows a step, the same end."""
    options, kept_dir = plain
    run_dir = copy_run(kept_dir, "changed", keep=1)
    code, output = fit(experiment, "changed", *options, "--data.max_device_batch_size", "2")
    assert code == 0 and "training from step 16" in output and "max_device_batch_size" in output, output
    kept, changed = final(kept_dir), final(run_dir)
    assert kept["cursor"] == changed["cursor"]
    for name, value in kept["network"].items():
        assert torch.allclose(value, changed["network"][name], atol=2e-3), name
    found = series(run_dir)
    assert [step for step, _ in found["train/loss"]] == list(range(1, 23))
    assert [step for step, _ in found["val/loss"]] == [6, 12, 18]


def test_sigterm_is_no_success(place, experiment):
    process = fit(experiment, "terminated", "--trainer.max_steps", "100000", wait=False)
    directory = place / "runs" / "tiny" / "terminated" / "checkpoints"
    while not list(directory.glob("step=*.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command continues" in output
    assert not (directory.parent / "lease.json").exists()


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process would ignore it
from aim_lightning.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_saves_the_step_and_a_second_one_aborts(place, experiment, again):
    """The second one comes while a batch takes long, so that the first one has not ended training."""
    run = f"interrupted_{again}"
    words = [sys.executable, "-c", INTERRUPTED, "fit", "--config", str(experiment), "--run", run]
    words += ["--trainer.max_steps", "100000", "--model.optimizer.schedule", "constant", "--data.num_workers", "1"]
    if again:
        extra = place / "slow.yaml"
        extra.write_text("callbacks: {slow: {class_path: callbacks.signalling.SlowStep, init_args: {step: 6}}}\n")
        words += ["--config", str(extra)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, cwd=ROOT, env=env, start_new_session=True, **pipe)
    run_dir = place / "runs" / "tiny" / run
    while not list((run_dir / "checkpoints").glob("step=*.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    for _ in range(1 + again):
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)  # to the loader's worker too, as a terminal does
    output, _ = process.communicate(timeout=60)
    step = int(newest_checkpoint(run_dir).name.removeprefix("step=").removesuffix(".ckpt"))
    assert process.returncode == 130 and "Ctrl-C: saving a checkpoint after this step" in output, output
    words = f"from step {step}" if again else f"stopped by Ctrl-C, step {step} is in a checkpoint"
    assert words in output and "Traceback" not in output, output
    assert (step == 4) is again, output


@pytest.mark.long
def test_validate_refuses_what_does_not_belong(place, experiment, aim_cli):
    code, output = fit(experiment, "without_ema", "--callbacks.ema", "null", "--trainer.max_steps", "4")
    assert code == 0, output
    validate = ("validate", "--config", experiment, "--run", "without_ema")
    done = aim_cli(*validate)
    assert done.returncode == 2 and "no averaged weights" in done.stderr
    done = aim_cli(*validate, "--model.network.d_state", "16")
    assert done.returncode == 2 and "model.network.d_state was 8, is 16" in done.stderr
    done = aim_cli(*validate, "--callbacks.ema", "null")
    assert done.returncode == 0, done.stderr
    results = json.loads((place / "runs" / "tiny" / "without_ema" / "results.json").read_text())
    assert results["protocol"]["validate"]["weights"] == "raw"


def test_a_run_stopped_before_its_results_gets_them_later(whole, experiment):
    (whole / "results.json").unlink()
    code, output = fit(experiment, "whole")
    assert code == 0 and "is finished" in output, output
    assert "val/loss" in json.loads((whole / "results.json").read_text())["metrics"]


def signalled(whole, place, name, rank, *options, command="fit"):
    """(exit code, output) of a command on a finished run without results; one rank gets a signal in the validation."""
    run_dir = copy_run(whole, f"{command}_{name}_{rank}")
    (run_dir / "results.json").unlink(missing_ok=True)
    extra = place / f"{name}{rank}.yaml"
    extra.write_text(
        "callbacks: {signalling: {class_path: callbacks.signalling.SignallingValidation, "
        f"init_args: {{rank: {rank}, name: {name}}}}}}}\n"
    )
    words = [sys.executable, "-m", "aim_lightning", command, "--config", place / "tiny.yaml", "--config", extra]
    words += ["--run", run_dir.name, "--data.val_batch_size", 5, *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([str(word) for word in words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert not (run_dir / "results.json").exists() and not (run_dir / "lease.json").exists(), done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_while_results_are_made_later_is_no_success(whole, place, name, code):
    """Exit 0 without results would have told job.sbatch that all is done."""
    ended, output = signalled(whole, place, name, 0)
    assert ended == code and f"{name}: stopping before validation batch 1, without results" in output, output
    assert "step 22 is in a checkpoint; the same command continues" in output


HANGS = """
import sys, time
import aim_lightning.{module} as module
from aim_lightning.cli.main import main
module.{name} = lambda *_, **__: time.sleep(100)
sys.exit(main(sys.argv[1:]))
"""


CASES = [
    ("runs.history", "read_content", "reading checkpoints"),
    ("cli.build.trainer_cli", "build", "reading step=00000022.ckpt"),
]


@pytest.mark.parametrize(("module", "name", "phase"), CASES)
def test_a_hang_before_training_or_after_it_is_noticed(whole, module, name, phase):
    """A shared disk that does not answer, or the results of a finished run."""
    run_dir = copy_run(whole, f"hang_in_{name}")
    (run_dir / "results.json").unlink(missing_ok=True)
    words = [sys.executable, "-c", HANGS.format(module=module, name=name), "fit", "--config", run_dir / "config.yaml"]
    words += ["--run", run_dir.name, "--cluster.hang_seconds", "6"]
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 70 and f"no progress for 6 s in {phase}" in done.stderr, done.stdout + done.stderr


def test_validate_that_is_stopped_is_no_success_either(whole, place):
    ended, output = signalled(whole, place, "SIGTERM", 0, command="validate")
    assert ended == 143 and "stopped by SIGTERM without results" in output, output


def test_ranks_with_other_numbers_of_batches_stop_together(whole, place):
    """19 rows: two batches for each rank at 5 rows a batch, but 2 and 1 at 9; rank 1 alone gets the signal."""
    ddp = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.val_batch_size", 9)
    ended, output = signalled(whole, place, "SIGUSR1", 1, *ddp)
    assert ended == 138 and output.count("stopping before validation batch 1, without results") == 1, output


def test_a_run_starts_from_another_with_other_classes(whole, place, experiment):
    for split, rows in (("train", [40]), ("val", [8])):
        write_tokens(place / "five" / split, rows, config=replace(TINY, num_classes=5))
    options = ["--model.network.num_classes", "5", "--data.path", place / "five", "--model.init_from", whole]
    options += ["--trainer.max_steps", "2", "--model.optimizer.base_learning_rate", "1e-9"]
    code, output = fit(experiment, "tuned", *options)
    assert code == 0, output
    assert f"weights from {whole}" in output
    assert "5 fresh classes in place of 3, the null class is kept" in output
    averaged = final(whole)["ema"]["network"]
    tuned = read_checkpoint(newest_checkpoint(whole.with_name("tuned")))["network"]
    word = "backbone.embeddings.word_embeddings.weight"
    assert torch.allclose(tuned[word], averaged[word], atol=1e-6)
