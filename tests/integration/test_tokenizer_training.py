"""Stage 1 with all features: resume to the bit from any checkpoint, on one process and two, in each precision.

Trainings run in the test process where possible: one takes a second there, and eight in a separate process.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, python
from helpers import write_random_vgg
from integration.tiny import (
    Experiment,
    assert_charts_match_curves,
    assert_same,
    charts,
    events,
    scalars,
    series,
    write_config,
)
from PIL import Image

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.main import main

pytestmark = pytest.mark.slow
STEPS = 8
# Options under which rounding alone separates one process from two: no dropout, whose values depend on the rank, no
# nonlinear function of a rank's images, and steps too small for Adam to amplify rounding.
SMOOTH = ("--model.network.dropout", 0, "--model.loss.entropy_weight", 0)
SMOOTH += ("--model.optimizer.base_learning_rate", "1e-3")
PLAIN, RANDOM = ("--model.adversarial", "null"), ("--model.codebook_init", "random")


def last(run_dir: Path, step: int = STEPS) -> dict:
    return read_checkpoint(run_dir / "checkpoints" / f"step={step:08d}.ckpt")


def weights(content: dict) -> dict[str, torch.Tensor]:
    groups = {"network": content["network"], "ema": content["ema"]["network"]}
    groups["discriminator"] = content.get("discriminator", {})
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    before = Path.cwd()
    os.chdir(ROOT)
    yield Experiment(write_config(tmp_path_factory.mktemp("tokenizer"), "tiny_tokenizer"))
    os.chdir(before)


@pytest.fixture(scope="module")
def reference(experiment):
    """Return the run that others are compared with; nothing interrupts it."""
    return experiment.fit("reference")


@pytest.fixture
def assert_resumed(experiment):
    """Return the function that checks that a copy of a run, cut after a step and continued, is the same to the bit."""

    def check(run, step, *options):
        cut = f"{run}_cut{step}"
        experiment.copy(run, cut, step)
        assert_same(experiment.fit(cut, *options), experiment.runs / run)
        return experiment.runs / cut

    return check


def test_checkpoint_holds_both_networks_and_both_optimizers(reference):
    content = last(reference)
    assert content["trainer"]["global_step"] == STEPS  # the discriminator's steps are not counted
    assert set(content["network"]) == set(content["ema"]["network"]) and "main.0.weight" in content["discriminator"]
    assert len(content["optimizers"]) == len(content["schedulers"]) == 2
    steps = [optimizer["state"][0]["step"].item() for optimizer in content["optimizers"]]
    assert steps == [STEPS, STEPS - 2]  # it starts after two


def test_curves(reference):
    curves = scalars(reference)
    for name in ("loss", "reconstruction", "codebook", "commitment", "entropy", "grad_norm", "codebook_usage"):
        assert [step for step, _ in curves[f"train/{name}"]] == list(range(1, STEPS + 1)), name
    for name in ("generator", "discriminator", "adaptive_weight", "logits_real", "grad_norm_discriminator"):
        assert [step for step, _ in curves[f"train/{name}"]] == list(range(3, STEPS + 1)), name
    assert [step for step, _ in curves["val/psnr"]] == [4, 8]
    assert_charts_match_curves(reference)
    pages = charts(reference)
    assert list(pages["training"])[:2] == ["loss", "PSNR"] and "LPIPS" not in pages["training"]
    assert [step for step, rate in curves["perf/model_tflops_per_s"] if rate > 0] == list(range(1, STEPS + 1))
    revived = [int(value) for _, value in curves["train/revived_codes"]]
    assert revived[2] > 0 and revived[5] > 0 and sum(revived) == revived[2] + revived[5]


def test_images_and_histograms(reference):
    accumulator = events(reference)
    assert "reconstructions" in accumulator.Tags()["images"]
    for tag in ("codebook/uses", "codebook/nearest_cosine"):
        assert [event.histogram_value.num for event in accumulator.Histograms(tag)] == [256, 256]


@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_cut_anywhere_and_continued_is_the_same_to_the_bit(assert_resumed, reference, step):
    assert_resumed("reference", step)


def test_accumulation_continues_to_the_bit(experiment, assert_resumed):
    options = ("--data.max_device_batch_size", 4)
    experiment.fit("accumulated", *options)
    assert_resumed("accumulated", 5, *options)


def test_curves_are_means_over_the_micro_batches_of_a_step(experiment):
    options = (*SMOOTH, *PLAIN, *RANDOM, "--trainer.max_steps", 1, "--data.max_device_batch_size")
    complete, parts = (series(experiment.fit(f"step_of_{size}", *options, size)) for size in (8, 2))
    for name in ("loss", "reconstruction", "codebook", "commitment"):
        assert parts[f"train/{name}"] == [(1, pytest.approx(complete[f"train/{name}"][0][1], rel=1e-5))], name


def test_gradient_checkpointing_changes_nothing(assert_resumed, reference):
    """Switch it on, dropout included, for a run that does not fit any more."""
    assert_resumed("reference", 4, "--model.gradient_checkpointing", "true")


def mixed_precision(experiment, precision: str) -> Experiment:
    """Return the experiment with a precision as a plugin, since Lightning's flag refuses fp16 on a CPU."""
    plugin = {"class_path": "lightning.pytorch.plugins.MixedPrecision"}
    plugin["init_args"] = {"precision": precision, "device": "cpu"}
    file = experiment.file.with_name(f"{precision}.yaml")
    file.write_text(f"include: [{experiment.file}]\ntrainer: {json.dumps({'plugins': [plugin]})}\n")
    return Experiment(file)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_continues_to_the_bit(experiment, assert_resumed, precision):
    """Continue with the scaler's state of fp16."""
    file = mixed_precision(experiment, precision).file
    content = last(experiment.fit(precision, "--config", file))
    cut = assert_resumed(precision, 5, "--config", file)
    assert all(torch.isfinite(value).all() for value in weights(content).values())
    scalers = [state["trainer"].get("MixedPrecision") for state in (content, last(cut))]
    assert scalers[0] == scalers[1]
    if precision == "16-mixed":
        assert scalers[0]["_growth_tracker"] == STEPS


def test_lasting_nan_in_fp16_is_one_line(experiment, capsys, monkeypatch):
    """Break the adversarial loss alone: the checked loss is finite, and the scaler skips every step silently."""
    monkeypatch.setattr("aim_lightning.modules.adversary.generator_loss", lambda kind, fake: fake.mean() * float("nan"))
    monkeypatch.setattr("aim_lightning.modules.optim.SMALLEST_SCALE", 2.0**13)  # 8 steps cannot get to the real one
    assert main(mixed_precision(experiment, "16-mixed").words("fit", "broken_loss")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: fp16's scale of the loss fell to 4096 at step 6: gradients are not finite at any")


@pytest.mark.long
def test_two_processes(experiment):
    """Compare two ranks with one process (discriminator, batch norm, revival, usage record); resume after a kill."""
    one, two, killed = experiment.fit("one", *SMOOTH), *(experiment.runs / name for name in ("two", "two_killed"))
    complete, continued = ({"args": experiment.words("fit", path.name, *SMOOTH)} for path in (two, killed))
    jobs = [complete, continued | {"kill_at": str(killed / "checkpoints" / "step=00000004.ckpt")}, continued]
    result = python(ROOT / "tests" / "integration" / "ranks.py", json.dumps(jobs))
    assert result.returncode == 0, result.stdout + result.stderr
    codes = json.loads(result.stdout.splitlines()[-1])
    assert codes == [[0, 0], [-9, -9], [0, 0]], result.stdout + result.stderr
    assert "training from step" in result.stdout
    assert_same(killed, two)
    a, b = weights(last(one)), weights(last(two))
    for name, value in a.items():
        assert torch.allclose(value.float(), b[name].float(), atol=2e-6), name
    assert torch.equal(a["network.quantize.codebook_used"], b["network.quantize.codebook_used"])
    change = last(one, 1)["discriminator"]["main.0.weight"] - a["discriminator.main.0.weight"]
    assert change.abs().max() > 1e-4  # there was something to agree on


def test_validate_scores_reconstructions(experiment, reference, succeed):
    small = ("--features.size", 32, "--trainer.limit_val_batches", 2)
    text = succeed(*experiment.words("validate", "reference", *small))
    results = json.loads((reference / "results.json").read_text())
    metrics, protocol = results["metrics"], results["protocol"]["validate"]
    assert {"val/psnr", "val/ssim", "val/codebook_usage", "val/codebook_perplexity"} <= set(metrics)
    for name in ("psnr", "ssim"):  # of 2 batches of 50, as the name states
        assert metrics[f"{name}_100"] == metrics[f"val/{name}"]
    assert "pad=0" in protocol["reconstruction_scores"]["reference"]
    assert metrics["rfd_effnet_lite0_2k"] > 0
    assert protocol["reconstruction_metrics"]["features"]["input_size"] == 32
    assert list(charts(reference)["scores"]) == ["Fréchet distance of reconstructions"]
    assert len(list((experiment.file.parent / "cache").glob("*.safetensors"))) == 1
    assert "next: make tokenize EXP=tiny_tokenizer RUN=reference" in text


@pytest.mark.filterwarnings("ignore:.*compares with no other")
def test_perceptual_loss_and_metric(experiment, tmp_path, succeed):
    """Use random weights in VGG16's file: LPIPS is a loss and a metric, with and without EMA, and is not saved."""
    file = write_random_vgg(tmp_path / "vgg16.pth")
    short = ("--trainer.max_steps", 4, "--trainer.val_check_interval", 2, "--data.val_batch_size", 10)
    options = ("--model.loss.perceptual_weight", 1, "--model.loss.perceptual_file", file, *short)
    run_dir = experiment.fit("lpips", *options)
    curves = series(run_dir)
    assert [step for step, value in curves["train/perceptual"] if value > 0] == [1, 2, 3, 4]
    assert [step for step, value in curves["val/lpips"] if value > 0] == [2, 4]
    assert not [name for name in last(run_dir, 4)["network"] if "vgg" in name]
    experiment.copy("lpips", "lpips_cut", 2)
    assert_same(experiment.fit("lpips_cut", *options), run_dir)
    alone = ("--model.lpips_file", file, "--callbacks.ema", "null", "--callbacks.reconstruction_metrics", "null")
    metric = experiment.fit("metric", *alone, *short)
    assert "train/perceptual" not in series(metric) and len(series(metric)["val/lpips"]) == 2
    succeed(*experiment.words("validate", "metric", *alone, *short))
    metrics = json.loads((metric / "results.json").read_text())["metrics"]
    assert metrics["lpips_20_raw"] == metrics["val/lpips"] > 0 and metrics["psnr_20_raw"] == metrics["val/psnr"]


def test_report(experiment, reference, tmp_path, monkeypatch):
    """Write what experiments/fashion_mnist_tokenizer/run.sh keeps of its runs."""
    script = str(ROOT / "experiments" / "tokenizer_report.py")
    monkeypatch.setattr(sys, "argv", [script, str(experiment.runs), "reference", "--out", str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config_reference.yaml", "curves.png", "reconstructions.png", "results.json"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["commit"] == results["runs"]["reference"]["commit"]
    assert "val/psnr" in results["runs"]["reference"]["metrics"]
    assert Image.open(tmp_path / "reconstructions.png").size[0] > 500


def test_start_from_published_weights(experiment, assert_resumed, reference, tmp_path):
    """Start network and average from a file that only the start needs."""
    file, published = tmp_path / "vq.pt", dict(last(reference)["network"])
    torch.save({"model": published}, file)
    still = ("--model.optimizer.base_learning_rate", "1e-12", "--model.revival.every_n_steps", 0, *RANDOM)
    content = last(experiment.fit("finetuned", *still, "--model.init_from", file))
    for name, value in published.items():
        if name != "quantize.codebook_used":
            assert torch.allclose(content["network"][name], value, atol=1e-6), name
            assert torch.allclose(content["ema"]["network"][name], value, atol=1e-6), name
    file.unlink()
    assert_resumed("finetuned", 3, *still, "--model.init_from", file)
    network = last(experiment.fit("from_run", *still, "--model.init_from", reference))["network"]
    ema = last(reference)["ema"]["network"]
    assert torch.allclose(network["quant_conv.weight"], ema["quant_conv.weight"], atol=1e-6)


LPIPS = "--model.loss.perceptual_weight 1 --model.loss.perceptual_file"
MISTAKES = {
    f"{LPIPS} nowhere.pth": "perceptual_file nowhere.pth does not exist; save https",
    "--model.init_from nowhere.pt --model.codebook_init random": "init_from nowhere.pt does not exist",
    "--model.lpips_file nowhere.pth": "lpips_file nowhere.pth does not exist; save https",
    f"--model.lpips_file README.md {LPIPS} README.md": "model.lpips_file is for a loss without LPIPS; set it null",
    "--model.init_from configs": "set model.codebook_init random",
    "--model.adversarial.discriminator.num_layers 3": "leaves no patch of 16x16 pixels",
    "--model.adversarial.start_step 8": "start_step is 8, but training ends after 8 steps: its loss would never",
    "--trainer.max_steps -1 --trainer.max_epochs 1 --model.adversarial.start_step 251": "training ends after 250 steps",
    "--model.adversarial.loss wgan": "expected one of hinge, non_saturating, vanilla",
}


@pytest.mark.parametrize(("options", "words"), MISTAKES.items())
def test_mistakes_are_one_line(experiment, capsys, options, words):
    assert main(experiment.words("fit", "mistake", *options.split())) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (experiment.runs / "mistake").exists()


def test_without_the_adversarial_loss(experiment, reference, assert_resumed, capsys):
    run_dir = experiment.fit("plain", *PLAIN)
    content = last(run_dir)
    assert "discriminator" not in content and len(content["optimizers"]) == 1
    assert not any(tag.startswith(("train/generator", "train/discriminator")) for tag in series(run_dir))
    assert_charts_match_curves(run_dir)
    pages = charts(run_dir)
    assert set(pages) == {"training", "codebook", "speed"} and "adaptive weight" not in pages["training"]
    assert_resumed("plain", 4, *PLAIN)
    assert main(experiment.words("validate", "reference", *PLAIN)) == 2
    assert "has a discriminator, model.adversarial is null" in capsys.readouterr().err
