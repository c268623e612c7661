"""Training in real processes: exact continuation, two processes, TensorBoard's files, signals."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from conftest import python, start_python
from helpers import TINY, write_tokens
from integration.tiny import Experiment, assert_same, scalars, series, write_experiment

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.runs.directory import list_checkpoints, newest_checkpoint, step_of

pytestmark = pytest.mark.slow
DDP = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
SMALL = ("--data.max_device_batch_size", 2)
ENDLESS = ("--trainer.max_steps", 100000, "--model.optimizer.schedule", "constant")


class Processes(Experiment):
    """The tiny experiment, whose trainings are processes."""

    def fit(self, run, *options, code=0):
        """Train, expect an exit code, and return the output."""
        result = self.process("fit", run, *options)
        assert result.returncode == code and "Traceback" not in result.stdout, result.stdout
        return result.stdout


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Processes(write_experiment(tmp_path_factory.mktemp("experiment")))


@pytest.fixture(scope="module")
def reference(experiment):
    """Return the run that others are compared with; nothing interrupts it."""
    assert "next: make validate EXP=tiny RUN=reference" in experiment.fit("reference")
    return experiment.runs / "reference"


@pytest.fixture(scope="module")
def plain(experiment):
    """Return the options and directory of a run without dropout, whose values depend on the size of micro-batches."""
    options = ("--model.network.token_dropout", 0, "--model.network.mixer_dropout", 0)
    experiment.fit("plain", *options)
    return options, experiment.runs / "plain"


def final(run_dir):
    content = read_checkpoint(newest_checkpoint(run_dir))
    assert content["trainer"]["global_step"] == 22
    return content


def assert_close(run_dir, other, atol):
    """Compare cursors and weights of two runs and return their series."""
    first, second = final(run_dir), final(other)
    assert first["cursor"] == second["cursor"]
    for name, value in first["network"].items():
        assert torch.allclose(value, second["network"][name], atol=atol), name
    return series(run_dir), series(other)


def values(curve):
    return [value for _, value in curve]


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def test_checkpoint_has_explicit_keys_and_plain_names(reference):
    content = final(reference)
    keys = "format network ema optimizers schedulers cursor data random_state configuration class_names tokenizer_hash"
    assert set(content) == {*keys.split(), "trainer"}
    assert content["cursor"] == {"epoch": 3, "batch": 1} and len(content["random_state"]) == 1
    assert content["configuration"]["experiment"] == "tiny"
    assert set(content["network"]) == set(content["ema"]["network"])
    assert all(name.startswith(("backbone.", "lm_head.")) for name in content["network"])


def test_every_step_is_in_tensorboard_once(reference):
    curves = scalars(reference)
    for tag in ("train/loss", "train/bits_per_code", "train/grad_norm"):
        assert [step for step, _ in curves[tag]] == list(range(1, 23)), tag
    assert [step for step, _ in curves["val/loss"]] == [6, 12, 18]
    assert {"train/learning_rate", "perf/images_per_s", "perf/tokens_per_s", "perf/model_tflops_per_s"} <= set(curves)


def test_a_finished_run_reports_it_and_changes_nothing(experiment, reference):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    assert "is finished (step 22)" in experiment.fit("reference")
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()} == before


def test_changed_configuration_is_refused(experiment, reference):
    output = experiment.fit("reference", "--model.label_dropout", 0.5, code=2)
    assert "model.init_args.label_dropout was 0.3, is 0.5" in output


@pytest.mark.parametrize("step", [4, 12])
def test_killed_and_continued_is_the_same_to_the_bit(experiment, reference, step):
    run_dir = experiment.runs / f"killed{step}"
    process = experiment.start("fit", run_dir.name)
    wait_for(process, lambda: any(step_of(path) >= step for path in list_checkpoints(run_dir)) or process.poll() == 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stopped = step_of(newest_checkpoint(run_dir))
    output = experiment.fit(run_dir.name)
    assert stopped == 22 or f"training from step {stopped}" in output
    assert_same(run_dir, reference)


@pytest.mark.long
def test_two_processes_agree_with_one(experiment, plain):
    """Train on two gloo ranks with two micro-batches per step: the rows of every global batch are the same."""
    options, one_dir = plain
    experiment.fit("two", *options, *DDP, *SMALL)
    two_dir = experiment.runs / "two"
    assert len(final(two_dir)["random_state"]) == 2
    one, two = assert_close(one_dir, two_dir, atol=2e-3)
    assert values(one["val/loss"]) == pytest.approx(values(two["val/loss"]), rel=1e-3)
    # Four micro-batches on two ranks: the logged loss is that of the global batch, not of one of them.
    assert values(one["train/loss"])[:5] == pytest.approx(values(two["train/loss"])[:5], rel=1e-4)


@pytest.mark.long
def test_another_number_of_processes_continues_with_the_same_rows_and_dropout(experiment):
    """Use micro-batches of two rows in both runs: only the order of the gradient's sum differs."""
    experiment.fit("one", *SMALL)
    two_dir = experiment.copy("one", "one_then_two", step=16)
    output = experiment.fit("one_then_two", *SMALL, *DDP)
    assert "training from step 16" in output and "trainer.devices" in output
    one, two = assert_close(experiment.runs / "one", two_dir, atol=1e-4)
    assert values(one["val/loss"]) == pytest.approx(values(two["val/loss"]), rel=1e-4)


def test_interrupted_two_processes_continue_to_the_bit(experiment):
    experiment.fit("ddp", *DDP)
    cut = experiment.copy("ddp", "ddp_cut", step=16)
    assert "training from step 16" in experiment.fit("ddp_cut", *DDP)
    assert_same(cut, experiment.runs / "ddp")


def test_a_second_training_is_refused_while_the_first_runs(experiment):
    process, lease = experiment.start("fit", "leased", *ENDLESS), experiment.runs / "leased" / "lease.json"
    wait_for(process, lambda: lease.exists() and lease.read_text())
    output = experiment.fit("leased", *ENDLESS, code=2)
    process.kill()
    process.communicate()
    assert f"trained by process {process.pid}" in output


def test_validate_and_results(experiment, reference):
    run_dir = experiment.copy("reference", "validated")  # it logs, and other tests compare the curves
    result = experiment.process("validate", "validated")
    assert result.returncode == 0 and "next: make sample EXP=tiny RUN=validated" in result.stdout, result.stdout
    results = json.loads((run_dir / "results.json").read_text())
    assert set(results) == {"format", "experiment", "run", "commit", "hardware", "protocol", "metrics"}
    assert results["experiment"] == "tiny" and "val/bits_per_code" in results["metrics"]


def test_the_saved_configuration_gives_the_same_result(experiment, reference):
    Processes(reference / "config.yaml").fit("again")
    assert_same(experiment.runs / "again", reference)


def test_continuing_with_another_accumulation_keeps_stream_and_end(experiment, plain):
    """Continue with smaller micro-batches, as after running out of memory: the rows per step and the end stay."""
    options, plain_dir = plain
    run_dir = experiment.copy("plain", "changed", step=16)
    output = experiment.fit("changed", *options, *SMALL)
    assert "training from step 16" in output and "max_device_batch_size" in output
    _, curves = assert_close(plain_dir, run_dir, atol=2e-3)
    assert [step for step, _ in curves["train/loss"]] == list(range(1, 23))
    assert [step for step, _ in curves["val/loss"]] == [6, 12, 18]


def test_sigterm_is_no_success(experiment):
    run_dir = experiment.runs / "terminated"
    process = experiment.start("fit", run_dir.name, *ENDLESS)
    wait_for(process, lambda: list_checkpoints(run_dir))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command continues" in output
    assert not (run_dir / "lease.json").exists()


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process would ignore it
from aim_lightning.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_saves_the_step_and_a_second_one_aborts(experiment, again):
    """Send the second one while a batch takes long, so that the first one has not ended training."""
    run_dir = experiment.runs / f"interrupted_{again}"
    options = (*ENDLESS, "--data.num_workers", 1)
    if again:
        extra = experiment.file.with_name("slow.yaml")
        extra.write_text("callbacks: {slow: {class_path: callbacks.signalling.SlowStep, init_args: {step: 6}}}\n")
        options += ("--config", extra)
    process = start_python("-c", INTERRUPTED, *experiment.words("fit", run_dir.name, *options))
    wait_for(process, lambda: list_checkpoints(run_dir))
    for _ in range(1 + again):
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)  # to the loader's worker too, as a terminal does
    output, _ = process.communicate(timeout=60)
    step = step_of(newest_checkpoint(run_dir))
    assert process.returncode == 130 and "Ctrl-C: saving a checkpoint after this step" in output, output
    words = f"from step {step}" if again else f"stopped by Ctrl-C, step {step} is in a checkpoint"
    assert words in output and "Traceback" not in output, output
    assert (step == 4) is again, output


@pytest.mark.long
def test_validate_refuses_other_weights_and_networks(experiment):
    experiment.fit("without_ema", "--callbacks.ema", "null", "--trainer.max_steps", 4)
    cases = [
        ((), 2, "no averaged weights"),
        (("--model.network.d_state", 16), 2, "model.network.d_state was 8, is 16; give the options"),
        (("--callbacks.ema", "null"), 0, "results: "),
    ]
    for options, code, words in cases:
        result = experiment.process("validate", "without_ema", *options)
        assert result.returncode == code and words in result.stdout, result.stdout
    results = json.loads((experiment.runs / "without_ema" / "results.json").read_text())
    assert results["protocol"]["validate"]["weights"] == "raw"


STOPPING = "stopping before validation batch 1, without results"
SAFE = "step 22 is in a checkpoint; the same command continues"
CASES = [
    ("fit", "SIGTERM", 0, 143, (), (f"SIGTERM: {STOPPING}", SAFE)),
    ("fit", "SIGUSR1", 0, 138, (), (f"SIGUSR1: {STOPPING}", SAFE)),
    ("validate", "SIGTERM", 0, 143, (), ("stopped by SIGTERM without results",)),
    # 19 rows: two batches for each rank at 5 rows per batch, but 2 and 1 at 9; rank 1 alone gets the signal.
    ("fit", "SIGUSR1", 1, 138, (*DDP, "--data.val_batch_size", 9), (STOPPING,)),
]


@pytest.mark.parametrize(("command", "name", "rank", "code", "options", "texts"), CASES)
def test_a_signal_while_results_are_computed_is_no_success(
    experiment, reference, command, name, rank, code, options, texts
):
    """Exit with the code of the signal: after 0 without results, job.sbatch would regard the job as done."""
    run_dir = experiment.copy("reference", f"{command}_{name}_{rank}")
    (run_dir / "results.json").unlink(missing_ok=True)
    extra = experiment.file.with_name(f"{name}{rank}.yaml")
    section = {"class_path": "callbacks.signalling.SignallingValidation", "init_args": {"rank": rank, "name": name}}
    extra.write_text(json.dumps({"callbacks": {"signalling": section}}))
    result = experiment.process(command, run_dir.name, "--config", extra, "--data.val_batch_size", 5, *options)
    assert result.returncode == code and "Traceback" not in result.stdout, result.stdout
    assert [result.stdout.count(text) for text in texts] == [1] * len(texts), result.stdout
    assert not (run_dir / "results.json").exists() and not (run_dir / "lease.json").exists()


HANGS = """
import sys, time
import aim_lightning.{module} as module
from aim_lightning.cli.main import main
module.{name} = lambda *_, **__: time.sleep(100)
sys.exit(main(sys.argv[1:]))
"""


CASES = [
    ("runs.history", "read_content", "reading checkpoints"),
    pytest.param("cli.build.trainer_cli", "build", "reading step=00000022.ckpt", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("module", "name", "phase"), CASES)
def test_a_hang_before_training_or_after_it_is_noticed(experiment, reference, module, name, phase):
    """Hang where a shared disk does not answer, and while the results of a finished run are computed."""
    run_dir = experiment.copy("reference", f"hang_in_{name}")
    (run_dir / "results.json").unlink(missing_ok=True)
    words = Experiment(run_dir / "config.yaml").words("fit", run_dir.name, "--cluster.hang_seconds", 6)
    result = python("-c", HANGS.format(module=module, name=name), *words)
    assert result.returncode == 70 and f"no progress for 6 s in {phase}" in result.stderr, result.stdout + result.stderr


def test_a_run_starts_from_another_with_other_classes(experiment, reference):
    five = experiment.file.with_name("five")
    for split, rows in (("train", [40]), ("val", [8])):
        write_tokens(five / split, rows, config=replace(TINY, num_classes=5))
    options = ("--model.network.num_classes", 5, "--data.path", five, "--model.init_from", reference)
    output = experiment.fit("tuned", *options, "--trainer.max_steps", 2, "--model.optimizer.base_learning_rate", "1e-9")
    assert f"weights from {reference}" in output
    assert "5 fresh classes in place of 3, the null class is kept" in output
    word = "backbone.embeddings.word_embeddings.weight"
    tuned = read_checkpoint(newest_checkpoint(experiment.runs / "tuned"))["network"]
    assert torch.allclose(tuned[word], final(reference)["ema"]["network"][word], atol=1e-6)
