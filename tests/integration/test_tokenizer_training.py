"""Stage 1 with everything on: continued to the bit from any checkpoint, on one process and two, in each precision.

Trained in the test process where possible: a run takes one second there, and eight in a separate process.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from helpers import write_random_vgg
from integration.tiny import scalars
from integration.tiny_tokenizer import write_experiment
from PIL import Image

from aim_lightning.checkpoint.io import read_checkpoint
from aim_lightning.cli.main import main

pytestmark = pytest.mark.slow
STEPS = 8
# Options under which rounding alone separates one process from two: no dropout, whose draws follow the rank, nothing of
# a nonlinear function of a rank's own images, and steps too small for Adam to blow rounding up.
SMOOTH = (
    "--model.network.dropout",
    "0",
    "--model.loss.entropy_weight",
    "0",
    "--model.optimizer.base_learning_rate",
    "1e-3",
)


class ProcessRank:
    """The experiment's file and its runs."""

    def __init__(self, root: Path) -> None:
        self.experiment, self.runs = write_experiment(root, ROOT / "configs"), root / "runs" / "tiny_tokenizer"

    def command(self, name: str, run: str, *options) -> list[str]:
        return [name, "--config", str(self.experiment), "--run", run, *map(str, options)]

    def fit(self, run: str, *options) -> Path:
        assert main(self.command("fit", run, *options)) == 0
        return self.runs / run

    def cut(self, run: str, name: str, step: int) -> Path:
        """A copy that ends with the checkpoint of `step`, as if killed after it; events go on, as they would."""
        copy = self.runs / name
        shutil.copytree(self.runs / run, copy)
        for path in (copy / "checkpoints").iterdir():
            if path.name > f"step={step:08d}.ckpt":
                path.unlink()
        return copy


def last(run_dir: Path, step: int = STEPS) -> dict:
    return read_checkpoint(run_dir / "checkpoints" / f"step={step:08d}.ckpt")


def weights(content: dict) -> dict[str, torch.Tensor]:
    groups = {"network": content["network"], "ema": content["ema"]["network"]}
    groups["discriminator"] = content.get("discriminator", {})
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def assert_same(one: Path, other: Path) -> None:
    a, b = last(one), last(other)
    assert weights(a).keys() == weights(b).keys()
    assert not [name for name, value in weights(a).items() if not torch.equal(value, weights(b)[name])]
    for key in ("optimizers", "schedulers", "cursor"):
        assert str(a[key]) == str(b[key])


def series(run_dir: Path) -> dict:
    return {tag: values for tag, values in scalars(run_dir).items() if not tag.startswith("perf/")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    before = Path.cwd()
    os.chdir(ROOT)
    yield ProcessRank(tmp_path_factory.mktemp("tokenizer"))
    os.chdir(before)


@pytest.fixture(scope="module")
def whole(place):
    return place.fit("whole")


def test_checkpoint_holds_both_networks_and_both_optimizers(whole):
    content = last(whole)
    assert content["trainer"]["global_step"] == STEPS  # the discriminator's steps are not counted
    assert set(content["network"]) == set(content["ema"]["network"]) and "main.0.weight" in content["discriminator"]
    assert len(content["optimizers"]) == len(content["schedulers"]) == 2
    steps = [optimizer["state"][0]["step"].item() for optimizer in content["optimizers"]]
    assert steps == [STEPS, STEPS - 2]  # it starts after two


def test_curves(whole):
    found = series(whole)
    for name in ("loss", "reconstruction", "codebook", "commitment", "entropy", "grad_norm", "codebook_usage"):
        assert [step for step, _ in found[f"train/{name}"]] == list(range(1, STEPS + 1)), name
    for name in ("generator", "discriminator", "adaptive_weight", "logits_real", "grad_norm_discriminator"):
        assert [step for step, _ in found[f"train/{name}"]] == list(range(3, STEPS + 1)), name
    assert [step for step, _ in found["val/psnr"]] == [4, 8]
    assert [step for step, rate in scalars(whole)["perf/model_tflops_per_s"] if rate > 0] == list(range(1, STEPS + 1))
    revived = [int(value) for _, value in found["train/revived_codes"]]
    assert revived[2] > 0 and revived[5] > 0 and sum(revived) == revived[2] + revived[5]


def test_images_and_histograms(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole), size_guidance={"histograms": 0})
    events.Reload()
    assert "reconstructions" in events.Tags()["images"]
    for tag in ("codebook/uses", "codebook/nearest_cosine"):
        assert [e.histogram_value.num for e in events.Histograms(tag)] == [256, 256]


@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_cut_anywhere_and_continued_is_the_same_to_the_bit(place, whole, step):
    place.cut("whole", f"cut{step}", step)
    run_dir = place.fit(f"cut{step}")
    assert_same(run_dir, whole)
    assert series(run_dir) == series(whole)


def test_accumulation_continues_to_the_bit(place):
    options = ("--data.max_device_batch_size", "4")
    whole = place.fit("accumulated", *options)
    place.cut("accumulated", "accumulated_cut", 5)
    assert_same(place.fit("accumulated_cut", *options), whole)


def test_curves_are_means_over_the_micro_batches_of_a_step(place):
    options = (*SMOOTH, "--model.adversarial", "null", "--model.codebook_init", "random", "--trainer.max_steps", "1")
    at_once, parts = (
        series(place.fit(f"step_of_{size}", *options, "--data.max_device_batch_size", size)) for size in (8, 2)
    )
    for name in ("loss", "reconstruction", "codebook", "commitment"):
        ((_, one),), ((_, mean),) = at_once[f"train/{name}"], parts[f"train/{name}"]
        assert mean == pytest.approx(one, rel=1e-5), name


def test_gradient_checkpointing_changes_nothing(place, whole):
    """Dropout included; and it may be switched on for a run that does not fit any more."""
    place.cut("whole", "checkpointed", 4)
    assert_same(place.fit("checkpointed", "--model.gradient_checkpointing", "true"), whole)


def fit_in(place, precision: str) -> list[str]:
    """The command but for the run; precision as a plugin, since Lightning's flag refuses fp16 on a CPU."""
    plugin = {"class_path": "lightning.pytorch.plugins.MixedPrecision"}
    plugin["init_args"] = {"precision": precision, "device": "cpu"}
    file = place.experiment.with_name(f"{precision}.yaml")
    file.write_text(f"include: [{place.experiment}]\ntrainer: {json.dumps({'plugins': [plugin]})}\n")
    return ["fit", "--config", str(file), "--run"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_continues_to_the_bit(place, precision):
    """The scaler of fp16 travels along."""
    fit = fit_in(place, precision)
    assert main([*fit, precision]) == 0
    place.cut(precision, f"{precision}_cut", 5)
    assert main([*fit, f"{precision}_cut"]) == 0
    one, other = place.runs / precision, place.runs / f"{precision}_cut"
    assert_same(one, other)
    assert all(torch.isfinite(value).all() for value in weights(last(one)).values())
    scalers = [last(run)["trainer"].get("MixedPrecision") for run in (one, other)]
    assert scalers[0] == scalers[1]
    if precision == "16-mixed":
        assert scalers[0]["_growth_tracker"] == STEPS


def test_lasting_nan_in_fp16_is_one_line(place, capsys, monkeypatch):
    """The scaler skips every step and says nothing; here the game alone is broken: the checked loss is finite."""
    monkeypatch.setattr("aim_lightning.modules.adversary.generator_loss", lambda kind, fake: fake.mean() * float("nan"))
    monkeypatch.setattr("aim_lightning.modules.optim.SMALLEST_SCALE", 2.0**13)  # 8 steps cannot get to the real one
    assert main([*fit_in(place, "16-mixed"), "broken_game"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: fp16's scale of the loss fell to 4096 at step 6: gradients are not finite at any")


@pytest.mark.long
def test_two_processes(place):
    """Discriminator, batch norm, revival and record on two ranks: those of one process, and to the bit after a kill."""
    one, checkpoints = place.fit("one", *SMOOTH), place.runs / "two_killed" / "checkpoints"
    jobs = [
        {"args": place.command("fit", "two", *SMOOTH)},
        {"args": place.command("fit", "two_killed", *SMOOTH), "kill_at": str(checkpoints / "step=00000004.ckpt")},
        {"args": place.command("fit", "two_killed", *SMOOTH)},
    ]
    command = [sys.executable, str(ROOT / "tests" / "integration" / "ranks.py"), json.dumps(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes == [[0, 0], [-9, -9], [0, 0]], done.stdout + done.stderr
    assert "training from step" in done.stdout
    assert_same(place.runs / "two_killed", place.runs / "two")
    a, b = weights(last(one)), weights(last(place.runs / "two"))
    for name, value in a.items():
        assert torch.allclose(value.float(), b[name].float(), atol=2e-6), name
    assert torch.equal(a["network.quantize.codebook_used"], b["network.quantize.codebook_used"])
    moved = last(one, 1)["discriminator"]["main.0.weight"] - a["discriminator.main.0.weight"]
    assert moved.abs().max() > 1e-4  # there was something to agree on


def test_validate_scores_reconstructions(place, whole, capsys):
    small = ("--features.size", "32", "--trainer.limit_val_batches", "2")
    assert main(place.command("validate", "whole", *small)) == 0
    results = json.loads((whole / "results.json").read_text())
    metrics, protocol = results["metrics"], results["protocol"]["validate"]["reconstruction_metrics"]
    assert {"val/psnr", "val/ssim", "val/codebook_usage", "val/codebook_perplexity"} <= set(metrics)
    for name in ("psnr", "ssim"):  # of 2 batches of 50, and said so
        assert metrics[f"{name}_100"] == metrics[f"val/{name}"]
    assert "pad=0" in results["protocol"]["validate"]["reconstruction_scores"]["reference"]
    assert metrics["rfd_effnet_lite0_2k"] > 0 and protocol["features"]["input_size"] == 32
    assert len(list((place.experiment.parent / "cache").glob("*.safetensors"))) == 1
    assert "next: make tokenize EXP=tiny_tokenizer RUN=whole" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*compares with no other")
def test_perceptual_loss_and_metric(place, tmp_path):
    """Random weights in VGG16's file: LPIPS pulls, is validated with and without EMA, and is in no checkpoint."""
    file = write_random_vgg(tmp_path / "vgg16.pth")
    short = ("--trainer.max_steps", 4, "--trainer.val_check_interval", 2, "--data.val_batch_size", 10)
    options = ("--model.loss.perceptual_weight", 1, "--model.loss.perceptual_file", file, *short)
    whole = place.fit("lpips", *options)
    found = series(whole)
    assert [step for step, value in found["train/perceptual"] if value > 0] == [1, 2, 3, 4]
    assert [step for step, value in found["val/lpips"] if value > 0] == [2, 4]
    assert not [name for name in read_checkpoint(whole / "checkpoints/step=00000004.ckpt")["network"] if "vgg" in name]
    place.cut("lpips", "lpips_cut", 2)
    assert series(place.fit("lpips_cut", *options)) == found
    alone = ("--model.lpips_file", file, "--callbacks.ema", "null", "--callbacks.reconstruction_metrics", "null")
    alone += short
    judged = place.fit("judged", *alone)
    assert "train/perceptual" not in series(judged) and len(series(judged)["val/lpips"]) == 2
    assert main(place.command("validate", "judged", *alone)) == 0
    metrics = json.loads((judged / "results.json").read_text())["metrics"]
    assert metrics["lpips_20_raw"] == metrics["val/lpips"] > 0 and metrics["psnr_20_raw"] == metrics["val/psnr"]


def test_report(place, whole, tmp_path, monkeypatch):
    """What experiments/fashion_mnist_tokenizer/run.sh keeps of its runs."""
    pytest.importorskip("matplotlib")
    script = ROOT / "experiments" / "tokenizer_report.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(place.runs), "whole", "--out", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    assert {p.name for p in tmp_path.iterdir()} == {
        "config_whole.yaml",
        "curves.png",
        "reconstructions.png",
        "results.json",
    }
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["commit"] == results["runs"]["whole"]["commit"]
    assert "val/psnr" in results["runs"]["whole"]["metrics"]
    assert Image.open(tmp_path / "reconstructions.png").size[0] > 500


def test_start_from_published_weights(place, whole, tmp_path):
    """The file is needed at the start alone, and the average starts from it too."""
    file, published = tmp_path / "vq.pt", dict(last(whole)["network"])
    torch.save({"model": published}, file)
    still = ("--model.optimizer.base_learning_rate", "1e-12", "--model.revival.every_n_steps", "0")
    options = (*still, "--model.codebook_init", "random", "--model.init_from", file)
    run_dir = place.fit("finetuned", *options)
    content = last(run_dir)
    for name, value in published.items():
        if name != "quantize.codebook_used":
            assert torch.allclose(content["network"][name], value, atol=1e-6), name
            assert torch.allclose(content["ema"]["network"][name], value, atol=1e-6), name
    file.unlink()
    place.cut("finetuned", "finetuned_cut", 3)
    assert_same(place.fit("finetuned_cut", *options), run_dir)
    with_ours = place.fit("from_ours", *still, "--model.codebook_init", "random", "--model.init_from", whole)
    ema = last(whole)["ema"]["network"]
    assert torch.allclose(last(with_ours)["network"]["quant_conv.weight"], ema["quant_conv.weight"], atol=1e-6)


CASES = [
    (
        ("--model.loss.perceptual_weight", "1", "--model.loss.perceptual_file", "nowhere.pth"),
        "perceptual_file nowhere.pth does not exist; save https",
    ),
    (("--model.init_from", "nowhere.pt", "--model.codebook_init", "random"), "init_from nowhere.pt does not exist"),
    (("--model.lpips_file", "nowhere.pth"), "lpips_file nowhere.pth does not exist; save https"),
    (
        ("--model.lpips_file", "README.md", "--model.loss", "{perceptual_weight: 1, perceptual_file: README.md}"),
        "model.lpips_file is for a loss without LPIPS; set it null",
    ),
    (("--model.init_from", "configs"), "set model.codebook_init random"),
    (("--model.adversarial.discriminator.num_layers", "3"), "leaves no patch of 16x16 pixels"),
    (("--model.adversarial.start_step", "8"), "start_step is 8, but training ends after 8 steps: its loss would never"),
    (
        ("--trainer.max_steps", "-1", "--trainer.max_epochs", "1", "--model.adversarial.start_step", "251"),
        "start_step is 251, but training ends after 250 steps",
    ),
    (("--model.adversarial.loss", "wgan"), "expected one of hinge, non_saturating, vanilla"),
]


@pytest.mark.parametrize(("options", "words"), CASES)
def test_mistakes_are_one_line(place, capsys, options, words):
    assert main(place.command("fit", "mistake", *options)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (place.runs / "mistake").exists()


def test_a_checkpoint_of_another_game_is_one_line(place, whole, capsys):
    assert main(place.command("validate", "whole", "--model.adversarial", "null")) == 2
    assert "has a discriminator, model.adversarial is null" in capsys.readouterr().err


def test_without_the_adversarial_loss(place):
    options = ("--model.adversarial", "null")
    run_dir = place.fit("plain", *options)
    content = last(run_dir)
    assert "discriminator" not in content and len(content["optimizers"]) == 1
    assert not any(tag.startswith(("train/generator", "train/discriminator")) for tag in series(run_dir))
    place.cut("plain", "plain_cut", 4)
    assert_same(place.fit("plain_cut", *options), run_dir)
