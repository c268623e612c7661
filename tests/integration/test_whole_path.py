"""Images to a scored generator by the commands of `make demo`, with a few steps each."""

import json

import pytest
import torch
from integration.tiny import scalars
from PIL import Image

pytestmark = pytest.mark.slow
TOKENIZER, AIM = "experiments/demo_tokenizer.yaml", "experiments/demo_aim.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("whole_path")


def succeed(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long  # `make demo` goes the same way
def test_images_to_scores(aim_cli, runs):
    place = ("--runs_root", runs, "--images.train", "data/fashion_mnist_mini/val")  # 2,000 images: a third of the time
    shards = runs / "tokens"
    stage1 = ("--trainer.max_steps", "30", "--trainer.val_check_interval", "30", "--trainer.limit_val_batches", "4")
    succeed(aim_cli("fit", "--config", TOKENIZER, *place, *stage1))
    tokenizer = runs / "demo_tokenizer" / "main"
    assert Image.open(tokenizer / "samples" / "reconstructions.png").size[0] > 500

    small = ("--data.out", shards, "--rows_per_shard", "1000")
    two = ("--trainer.devices", "2", "--data.num_workers", "1")  # two processes, as a training would have
    text = succeed(aim_cli("tokenize", "--config", TOKENIZER, *place, *small, *two))
    assert "process 1 of 2" in text and text.count("next: make shards") in (1, 2)  # one or both see the end
    check_shards(aim_cli, shards, tokenizer)

    data = ("--data.path", shards)
    stage2 = ("--trainer.max_steps", "20", "--trainer.val_check_interval", "10", "--trainer.limit_val_batches", "2")
    succeed(aim_cli("fit", "--config", AIM, *place, *data, *stage2))
    aim = runs / "demo_aim" / "main"
    assert (aim / "samples" / "grid.png").exists() and (aim / "samples" / "grid-step=00000020.png").exists()

    few = ("--callbacks.sample_metrics.num_samples", "100", "--callbacks.sample_metrics.cache_dir", runs / "cache")
    small = ("--features.size", "32")
    succeed(aim_cli("validate", "--config", AIM, *place, *data, *few, *small))
    results = json.loads((aim / "results.json").read_text())
    for name in ("fd_effnet_lite0_100", "class_agreement_100", "fd_effnet_lite0_100_untrained"):
        assert name in results["metrics"]
    real, drawn = (results["metrics"][f"fd_effnet_lite0_{n}"] for n in ("2k_real", "100"))
    assert real < drawn and results["metrics"]["class_agreement_2k_real"] > 0.6
    assert results["protocol"]["validate"]["sample_metrics"]["sampling"]["cfg_scale"] == 2.0

    out = runs / "bags"
    text = succeed(aim_cli("sample", "--config", AIM, *place, "--classes", "sneaker,bag", "--num", "3", "--out", out))
    names = sorted(p.name for p in out.iterdir())
    assert len(names) == 7 and names[0].startswith("bag-step=00000020-cfg2-seed0-"), names

    tags = scalars(aim)
    assert {"train/loss", "val/bits_per_code", "perf/tokens_per_s"} <= set(tags)
    check_images_in_tensorboard(aim, "samples")
    check_images_in_tensorboard(tokenizer, "reconstructions")
    check_load(aim)
    check_foreign_tokenizer(aim_cli, runs, place, data)


def check_shards(aim_cli, shards, tokenizer):
    text = succeed(aim_cli("shards", "verify", shards, "--tokenizer", tokenizer))
    assert text.count("2,000 rows, no faults") == 2
    succeed(aim_cli("shards", "preview", shards / "train", "--tokenizer", tokenizer, "--num", "12"))
    assert Image.open(shards / "train" / "preview.png").size[0] == 8 * 98
    manifest = json.loads((shards / "train" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["views"], manifest["grid"], len(manifest["shards"])) == (2000, 2, [8, 8], 2)


def check_images_in_tensorboard(run_dir, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir))
    events.Reload()
    assert tag in events.Tags()["images"] and "configuration/text_summary" in events.Tags()["tensors"]
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def check_load(run_dir):
    import aim_lightning

    pipeline = aim_lightning.load(run_dir)
    images = pipeline.generate([0, 9], seed=1, cfg_scale=2.0)
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    assert pipeline.class_names[9] == "ankle boot"


def check_foreign_tokenizer(aim_cli, runs, place, data):
    """Shards of one tokenizer with the weights of another: refused before a step is spent."""
    succeed(
        aim_cli(
            "fit",
            "--config",
            TOKENIZER,
            *place,
            "--run",
            "other",
            "--trainer.max_steps",
            "2",
            "--seed_everything",
            "5",
            "--trainer.val_check_interval",
            "2",
            "--trainer.limit_val_batches",
            "1",
        )
    )
    other = ("--tokenizer", runs / "demo_tokenizer" / "other", "--run", "foreign")
    done = aim_cli("fit", "--config", AIM, *place, *data, *other)
    assert done.returncode == 2 and "written by another tokenizer" in done.stderr
    done = aim_cli("sample", "--config", AIM, *place, "--tokenizer", runs / "demo_tokenizer" / "other")
    assert done.returncode == 2 and "codes of another tokenizer" in done.stderr
    done = aim_cli("fit", "--config", AIM, *place, *data, "--model.network.num_classes", "7", "--run", "foreign")
    assert done.returncode == 2 and "set model.network.num_classes 10" in done.stderr
