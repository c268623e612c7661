"""Images to a scored network by the commands of `make demo`, with a few steps each."""

import json

import pytest
import torch
from integration.tiny import events
from PIL import Image

import aim_lightning

pytestmark = pytest.mark.long  # `make demo` runs the same commands
TOKENIZER, AIM = "experiments/demo_tokenizer.yaml", "experiments/demo_aim.yaml"


@pytest.fixture
def call(aim_cli, tmp_path):
    """Return the function that runs a command on an experiment with 2,000 images, a third of the time."""
    options = ("--runs_root", tmp_path, "--images.train", "data/fashion_mnist_mini/val")

    def run(command, config, *words, error=None):
        result = aim_cli(command, "--config", config, *options, *words)
        assert result.returncode == (2 if error else 0), result.stdout + result.stderr
        assert error is None or error in result.stderr
        return result.stdout

    return run


def length(steps, interval, batches):
    words = ("--trainer.max_steps", steps, "--trainer.val_check_interval", interval)
    return (*words, "--trainer.limit_val_batches", batches)


def test_images_to_scores(call, aim_cli, tmp_path):
    shards, tokenizer, aim = (tmp_path / name for name in ("tokens", "demo_tokenizer/main", "demo_aim/main"))
    call("fit", TOKENIZER, *length(30, 30, 4))
    assert Image.open(tokenizer / "samples" / "reconstructions.png").size[0] > 500

    processes = ("--trainer.devices", 2, "--data.num_workers", 1)
    text = call("tokenize", TOKENIZER, "--data.out", shards, "--rows_per_shard", 1000, *processes)
    assert "process 1 of 2" in text and text.count("next: make shards") in (1, 2)  # one or both see the end
    check_shards(aim_cli, shards, tokenizer)

    data = ("--data.path", shards)
    call("fit", AIM, *data, *length(20, 10, 2))
    assert (aim / "samples" / "grid.png").exists() and (aim / "samples" / "grid-step=00000020.png").exists()
    few = ("--callbacks.sample_metrics.num_samples", 100, "--callbacks.sample_metrics.cache_dir", tmp_path / "cache")
    call("validate", AIM, *data, *few, "--features.size", 32)
    results = json.loads((aim / "results.json").read_text())
    metrics, protocol = results["metrics"], results["protocol"]["validate"]["sample_metrics"]
    assert {"class_agreement_100", "fd_effnet_lite0_100_untrained"} <= set(metrics)
    assert metrics["fd_effnet_lite0_2k_real"] < metrics["fd_effnet_lite0_100"]
    assert metrics["class_agreement_2k_real"] > 0.6 and protocol["sampling"]["cfg_scale"] == 2.0

    call("sample", AIM, "--classes", "sneaker,bag", "--num", 3, "--out", tmp_path / "bags")
    names = sorted(path.name for path in (tmp_path / "bags").iterdir())
    assert len(names) == 7 and names[0].startswith("bag-step=00000020-cfg2-seed0-"), names

    assert {"train/loss", "val/bits_per_code", "perf/tokens_per_s"} <= set(events(aim).Tags()["scalars"])
    for run_dir, tag in ((aim, "samples"), (tokenizer, "reconstructions")):
        tags = events(run_dir).Tags()
        assert tag in tags["images"]
        assert {"configuration/text_summary", "custom_scalars__config__"} <= set(tags["tensors"])

    pipeline = aim_lightning.load(aim)
    images = pipeline.generate([0, 9], seed=1, cfg_scale=2.0)
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    assert pipeline.class_names[9] == "ankle boot"

    # Shards of one tokenizer with the weights of another are refused before the first step.
    call("fit", TOKENIZER, "--run", "other", "--seed_everything", 5, *length(2, 2, 1))
    other = ("--tokenizer", tmp_path / "demo_tokenizer" / "other")
    call("fit", AIM, *data, *other, "--run", "foreign", error="written by another tokenizer")
    call("sample", AIM, *other, error="codes of another tokenizer")
    classes = ("--model.network.num_classes", 7, "--run", "foreign")
    call("fit", AIM, *data, *classes, error="set model.network.num_classes 10")


def check_shards(aim_cli, shards, tokenizer):
    result = aim_cli("shards", "verify", shards, "--tokenizer", tokenizer)
    assert result.stdout.count("2,000 rows, no faults") == 2, result.stderr
    assert aim_cli("shards", "preview", shards / "train", "--tokenizer", tokenizer, "--num", 12).returncode == 0
    assert Image.open(shards / "train" / "preview.png").size[0] == 8 * 130
    manifest = json.loads((shards / "train" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["views"], manifest["grid"], len(manifest["shards"])) == (2000, 2, [8, 8], 2)
