"""Evaluation during training: training untouched to the bit, memory constant, ranks in step, the best kept."""

import gc
import json
import os
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from evaluation.small import last_error, networks
from helpers import TINY, assert_user_error, write_tokens
from integration.tiny import Experiment, assert_charts_match_curves, scalars, write_config

from aim_lightning.callbacks.evaluation import training_evaluation
from aim_lightning.callbacks.evaluation.training_evaluation import TrainingEvaluation
from aim_lightning.callbacks.training import stop_request
from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.main import main
from aim_lightning.cluster import signals
from aim_lightning.evaluation import incremental
from aim_lightning.evaluation.incremental import IncrementalScores
from aim_lightning.evaluation.score_record import read_record

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
DDP = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
DATA = ROOT / "data/fashion_mnist_mini/val"
OPTIONS = "--callbacks.training_evaluation"
TAG = "metrics/fd_effnet_lite0_40"
MORE = """
tokenizer: {root}/published
images: {{train: {data}, val: {data}, image_size: 4, resize: 4}}
features: {{class_path: aim_lightning.metrics.features.EfficientNetLite0Features, init_args: {{size: 32}}}}
sampling: {{cfg_scale: 1.5, batch_size: 16}}
callbacks:
  training_evaluation:
    class_path: aim_lightning.callbacks.evaluation.training_evaluation.TrainingEvaluation
    init_args: {{num_samples: 40, every_n_steps: 6, keep_best: 2, cache_dir: {root}/cache}}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("training_evaluation")
    pipeline = networks()
    pipeline.save_pretrained(root / "published")
    for split, rows in (("train", [25, 20, 16]), ("val", [19])):
        write_tokens(root / "tokens" / split, rows, tokenizer_hash=pipeline.tokenizer.weights_hash, config=TINY)
    values, more = yaml.safe_load(write_config(root).read_text()), yaml.safe_load(MORE.format(root=root, data=DATA))
    values["callbacks"] = {**more.pop("callbacks"), **values["callbacks"]}
    (root / "tiny.yaml").write_text(yaml.safe_dump({**values, **more}, sort_keys=False))
    return Experiment(root / "tiny.yaml")


@pytest.fixture(scope="module")
def run(experiment):
    return experiment.fit("with")


def test_training_is_the_same_to_the_bit(experiment, run):
    other = experiment.fit("without", OPTIONS, "null")
    curves, other_curves = scalars(run), scalars(other)
    for tag in ("train/loss", "train/grad_norm", "val/loss"):
        assert curves[tag] == other_curves[tag] and len(curves[tag]) > 2, tag
    last = [read_checkpoint(path / "checkpoints" / "step=00000022.ckpt") for path in (run, other)]
    for part in ("network", "ema"):
        one, two = (content[part].get("network", content[part]) for content in last)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(*(content["random_state"][0]["torch"] for content in last))


def test_curves_grid_and_best_checkpoints(run):
    values = scalars(run)[TAG]
    assert [step for step, _ in values] == [6, 12, 18, 22]
    assert {f"metrics/{name}_40" for name in ("precision_effnet_lite0", "mind_effnet_lite0", "class_agreement")} <= set(
        scalars(run)
    )
    assert_charts_match_curves(run)
    assert (run / "samples" / "evaluation.png").is_file()
    ranked = sorted((value, step) for step, value in values)[:2]
    kept = sorted((run / "best").iterdir())
    assert [f"fd_effnet_lite0_40={value:.4f}-step={step:08d}.ckpt" for value, step in ranked] == [p.name for p in kept]
    content = read_checkpoint(kept[0])
    assert content["trainer"]["global_step"] == ranked[0][1] and content["ema"] is not None


def test_a_continued_run_equals_an_uninterrupted_one(experiment, run, tmp_path):
    """Cut back to the checkpoint of step 12: values, best checkpoints and steps are as without the break.

    With the fast decoder, which generates the plain one's images in float32, and a grid of samples after validation.
    """
    cut = experiment.runs / "cut"
    grid = "{class_path: aim_lightning.callbacks.logging.image_logging.SampleGrid, init_args: {classes: 2, columns: 2}}"
    (tmp_path / "fast.yaml").write_text(f"sampling: {{decoder: fast}}\ncallbacks: {{grid: {grid}}}\n")
    fast = ("--callbacks.checkpoints.keep_last", "9", "--config", tmp_path / "fast.yaml")
    experiment.fit("cut", *fast)
    for path in (cut / "checkpoints").iterdir():
        if int(path.stem.split("=")[1]) > 12:
            path.unlink()
    shutil.rmtree(cut / "best")
    experiment.fit("cut", *fast)
    assert scalars(cut)[TAG] == scalars(run)[TAG]
    assert (cut / "samples" / "grid.png").is_file()


@pytest.mark.long
def test_fifty_evaluations_use_constant_memory(experiment, monkeypatch, tmp_path):
    measured, evaluate = [], TrainingEvaluation._evaluate

    def measuring(self, *arguments):
        evaluate(self, *arguments)
        tensors = 0  # and no collection that would hide memory in cycles
        if 5 <= len(measured) < 10 or len(measured) >= 47:  # counting takes a while
            gc.collect()
            tensors = sum(isinstance(item, torch.Tensor) for item in gc.get_objects())
        measured.append((tensors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))

    monkeypatch.setattr(TrainingEvaluation, "_evaluate", measuring)
    options = ("--trainer.max_steps", 50, "--trainer.val_check_interval", 1000, "--callbacks.ema", "null")
    few = (f"{OPTIONS}.every_n_steps", 1, f"{OPTIONS}.keep_best", 0)
    images = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", arr_0=images)  # fifty distances to 2,000 images would take long
    few += (f"{OPTIONS}.reference", tmp_path / "reference.npz")
    experiment.fit("fifty", *options, *few, "--callbacks.checkpoints.every_n_steps", 50)
    assert len(measured) == 50
    assert 0 < measured[-1][0] <= max(tensors for tensors, _ in measured[:10]), "tensors are kept"
    # One matrix of 1,280 x 1,280 kept per evaluation would be 500 MiB; the heap itself grows by a few of them.
    assert measured[-1][1] - measured[9][1] < 100, "MiB"


@pytest.mark.long
def test_two_ranks_with_uneven_shares_and_a_budget_end(experiment):
    """49 images are four blocks for two ranks; the budget ends within the first round, after which both stop.

    With the fast decoder, as on two GPUs.
    """
    budget = (f"{OPTIONS}.num_samples", 49, f"{OPTIONS}.budget_seconds", 1e-3)
    result = experiment.process("fit", "two", *DDP, "--trainer.max_steps", 8, "--sampling.decoder", "fast", *budget)
    assert result.returncode == 0, result.stdout
    curves = scalars(experiment.runs / "two")
    assert [step for step, _ in curves["metrics/fd_effnet_lite0_32"]] == [6, 8]
    assert not any(tag.endswith("_49") for tag in curves)
    record = read_record(experiment.runs / "two" / "samples" / "evaluation.json")
    assert record["protocol"]["sampling"]["decoder"] == "fast"


def test_evaluation_by_epochs_of_the_trained_weights(experiment):
    """Seven steps per epoch: due after each second one, at the first batch of the next."""
    by_epoch = (f"{OPTIONS}.every_n_steps", 0, f"{OPTIONS}.every_n_epochs", 2)
    run = experiment.fit("epochs", *by_epoch, "--callbacks.ema", "null")
    assert [step for step, _ in scalars(run)["metrics/fd_effnet_lite0_40_raw"]] == [14, 22]


def test_a_signal_aborts_an_evaluation_and_the_next_start_repeats_it(experiment, run, monkeypatch, own_signals):
    """SIGTERM while step 12 is evaluated: a checkpoint of step 12 immediately, then everything as without it."""
    generate, generated = incremental.generate_blocks, []

    def interrupted(*arguments):
        for images in generate(*arguments):
            generated.append(len(images))
            if len(generated) == 5:  # three blocks per evaluation: the second block of the second one
                os.kill(os.getpid(), signal.SIGTERM)
            yield images

    with monkeypatch.context() as patch:
        patch.setattr(incremental, "generate_blocks", interrupted)
        assert main(experiment.words("fit", "signal")) == 128 + signal.SIGTERM
    other = experiment.runs / "signal"
    assert len(generated) == 5 and (other / "checkpoints" / "step=00000012.ckpt").is_file()
    signals._received = signals.NONE  # as in a new process
    experiment.fit("signal")
    for tag in ("train/loss", TAG):
        assert scalars(other)[tag] == scalars(run)[tag], tag
    kept, expected = (sorted(path.name for path in (directory / "best").iterdir()) for directory in (other, run))
    assert kept == expected


@pytest.mark.long
def test_a_signal_to_one_of_two_ranks_stops_both_at_that_step(experiment, tmp_path):
    """Three blocks are two rounds: rank 1 gets it while it generates at step 12, both agree before the second round."""
    signalling = "{class_path: callbacks.signalling.Signalling, init_args: {rank: 1, block: 2}}"
    (tmp_path / "signalling.yaml").write_text(f"callbacks: {{signalling: {signalling}}}\n")
    result = experiment.process("fit", "both", *DDP, "--config", tmp_path / "signalling.yaml")
    assert result.returncode == 128 + signal.SIGTERM, result.stdout
    assert "evaluation aborted" in result.stdout and "Traceback" not in result.stdout
    run = experiment.runs / "both"
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "step=00000012.ckpt"
    assert [step for step, _ in scalars(run)[TAG]] == [6]


def test_every_block_is_a_heartbeat_and_the_record_contains_the_protocol(experiment, run, monkeypatch):
    phases = []
    monkeypatch.setattr(stop_request, "beat", phases.append)
    experiment.fit("beats", "--trainer.max_steps", 6)
    assert sum("of an evaluation" in phase for phase in phases) == 3
    record = read_record(run / "samples" / "evaluation.json")
    assert record["metrics"]["fd_effnet_lite0_40"] == pytest.approx(scalars(run)[TAG][-1][1])
    assert (record["model"]["step"], record["model"]["weights"], record["num_images"]) == (22, "ema", 40)
    assert record["protocol"]["sampling"]["cfg_scale"] == 1.5 and record["protocol"]["reference"]["fingerprint"]
    assert (record["model"]["experiment"], record["model"]["run"]) == ("tiny", "with")
    lines = [json.loads(line) for line in (run / "samples" / "evaluations.jsonl").read_text().splitlines()]
    assert [line["model"]["step"] for line in lines] == [6, 12, 18, 22] and lines[-1] == record
    assert len({line["model"]["weights_sha256"] for line in lines}) == 4


def test_results_of_fit_contain_the_step_of_the_last_validation_and_validate_replaces_them(experiment, run):
    """The last step is 22, the last validation at 18; a training evaluation takes no part in `validate`."""
    results = json.loads((run / "results.json").read_text())
    fit = results["protocol"]["fit"]
    assert (results["protocol"]["step"], fit["step"]) == (22, 18) and "weights_sha256" not in fit
    assert fit["metrics"] == sorted(results["metrics"]) and "val/loss" in fit["metrics"]
    assert main(experiment.words("validate", "with")) == 0
    protocol = json.loads((run / "results.json").read_text())["protocol"]
    assert protocol["step"] == protocol["validate"]["step"] == 22 and len(protocol["validate"]["weights_sha256"]) == 64
    assert "val/loss" in protocol["validate"]["metrics"] and "training_evaluation" not in protocol["validate"]
    assert "val/loss" not in protocol.get("fit", {}).get("metrics", [])


def test_images_of_another_size_than_the_reference_are_noticed_before_training(experiment, capsys, tmp_path):
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((9, 8, 8, 3), np.uint8))
    reference = (f"{OPTIONS}.reference", tmp_path / "large.npz")
    assert main(experiment.words("fit", "size", *reference)) == 2
    assert "4x4 pixels, those of the reference 8x8" in last_error(capsys)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_guidance_without_a_trained_null_class_is_refused_before_training(command, experiment, run, capsys):
    name = "with" if command == "validate" else "no_null"
    assert main(experiment.words(command, name, "--model.label_dropout", 0)) == 2
    message = "sampling.cfg_scale is 1.5, but the network was trained with label_dropout 0"
    assert message in last_error(capsys)


def test_guidance_without_a_trained_null_class_can_be_allowed(experiment):
    allow = (f"{OPTIONS}.allow_untrained_guidance", "true", "--trainer.max_steps", 6)
    run = experiment.fit("allowed", "--model.label_dropout", 0, *allow)
    assert [step for step, _ in scalars(run)[TAG]] == [6]


def test_a_mistyped_monitor_is_noticed_before_training(experiment, capsys):
    assert main(experiment.words("fit", "monitor", f"{OPTIONS}.monitor", "fid")) == 2
    assert "monitor is 'fid'; use one of fd_effnet_lite0, kd_effnet_lite0, precision" in last_error(capsys)
    assert not list((experiment.runs / "monitor" / "checkpoints").glob("*"))


def test_only_values_of_as_many_images_are_ranked_together(tmp_path, monkeypatch):
    """A distance on fewer images is larger: the earlier ones would always remain the best."""
    callback = TrainingEvaluation(num_samples=40, every_n_steps=1, keep_best=2)
    callback.features, callback.run_dir = SimpleNamespace(metric_name="fd"), tmp_path
    (tmp_path / "best").mkdir()
    monkeypatch.setattr(training_evaluation, "write_or_report", lambda trainer, path: Path(path).touch())
    trainer = SimpleNamespace(is_global_zero=True)
    for step, count, value in ((1, 40, 2.0), (2, 40, 1.0), (3, 16, 9.0), (4, 16, 8.0), (5, 16, 8.5)):
        callback.num_samples, trainer.global_step = count, step
        callback._keep_best(trainer, {"fd": value})
    assert [entry[:2] for entry in callback.best] == [[8.0, 4], [8.5, 5]]
    names = ["fd_16=8.0000-step=00000004.ckpt", "fd_16=8.5000-step=00000005.ckpt"]
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == names


def test_the_budget_decides_once(monkeypatch):
    """A slower machine must not end the curve and start another one with fewer images."""
    callback = TrainingEvaluation(num_samples=40, every_n_steps=1, budget_seconds=10.0)
    calls, counts = [], iter((40, 24, 24, 24))

    def score(pipeline, num_images, stop, budget_seconds):
        calls.append((num_images, budget_seconds))
        return IncrementalScores(0, next(counts), {})

    monkeypatch.setattr(training_evaluation, "AiMPipeline", lambda *networks: None)
    monkeypatch.setattr(TrainingEvaluation, "_record", lambda *_, **__: {"metrics": {}})
    monkeypatch.setattr(TrainingEvaluation, "_keep_best", lambda *_: None)
    callback.tokenizer, callback.scorer = None, SimpleNamespace(score=score)
    trainer = SimpleNamespace(callbacks=[], loggers=[], is_global_zero=False, global_step=1)
    module = SimpleNamespace(device=torch.device("cpu"), network=torch.nn.Linear(1, 1))
    for _ in range(3):
        callback._evaluate(trainer, module)
    again = TrainingEvaluation(num_samples=40, every_n_steps=1, budget_seconds=10.0)
    again.load_state_dict(callback.state_dict())
    again.tokenizer, again.scorer = None, callback.scorer
    again._evaluate(trainer, module)
    assert calls == [(40, 10.0), (40, 10.0), (24, None), (24, None)]


def test_contradictory_settings_are_refused():
    for options in ({}, {"every_n_steps": 1, "every_n_epochs": 1}, {"every_n_steps": 1, "num_samples": 3}):
        assert_user_error("training evaluation", TrainingEvaluation, **options)
    TrainingEvaluation(every_n_steps=1, num_samples=2, compare=False)
