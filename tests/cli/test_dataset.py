"""Images of a user: a class-per-directory tree becomes shards and experiments that train."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from aim_lightning.cli.commands.dataset import DOWNSAMPLING, crop_range, file_names
from aim_lightning.cli.plan.benchmark import measure
from aim_lightning.config.yaml import read_mapping
from aim_lightning.data.images.dataset import Images
from aim_lightning.data.images.directory import open_source
from aim_lightning.data.images.directory_split import make_shards, name_hash
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.data.tokens.format.tokenize_options import Views
from aim_lightning.utils.files import read_json


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Create a directory with the shipped configurations, and 30 + 25 images of two classes in several formats."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    rng, formats = np.random.default_rng(0), ("png", "jpg", "webp", "bmp")
    for name, count in (("red bird", 30), ("blau", 25)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(count):
            side = 300 if i == 0 else 30
            pixels = rng.integers(0, 255, (side, side + 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{i}.v{i % 3}.{formats[i % 4]}")
    return tmp_path


def words(*options, directory="mine") -> list[str]:
    return ["dataset", directory, "birds", "--image_size", "16", *options]


def by_content(directory):
    """Return labels by the pixels."""
    source = open_source(directory)
    return {image.tobytes(): label for image, label in zip(source, source.labels, strict=True)}


def test_images_are_split_by_the_hash_of_their_names(checkout, succeed):
    out = succeed(*words("--val_fraction", "0.3"))
    train, val = (open_source(checkout / "data/birds" / split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["blau", "red bird"]
    assert len(train) + len(val) == 55 and not by_content("data/birds/train").keys() & by_content("data/birds/val")
    expected = sum(name_hash(path.name) < 0.3 for path in (checkout / "mine").rglob("*.*"))
    assert len(val) == expected and set(val.labels) == {0, 1}
    assert "training and" in out and "make stages NAME=birds" in out
    large = [image.size for image in train if min(image.size) != 30]
    assert all(size == (33, 32) for size in large)  # shrunk to twice the size that the networks see
    before = by_content("data/birds/val")
    for path in sorted((checkout / "mine" / "blau").iterdir())[::2]:
        path.unlink()
    succeed(*words("--val_fraction", "0.3"))
    assert by_content("data/birds/val").items() <= before.items()  # nothing changed sides


def test_progress_counts_every_image(checkout, monkeypatch):
    seen = []

    def progress(rows, name):
        for row in rows:
            seen.append((name, len(rows)))
            yield row

    monkeypatch.setattr("aim_lightning.data.images.directory_split.progress", progress)
    report = make_shards(checkout / "mine", checkout / "out", 0.2, 32, "error", 10**6)
    wanted = {"looking at the images": 55, **{f"writing {split}": count for split, count in report.rows.items()}}
    assert {name: seen.count((name, count)) for name, count in wanted.items()} == wanted


def test_bytes_are_kept_where_the_shards_allow_them(checkout, succeed):
    succeed(*words())
    stored = set()
    for split in ("train", "val"):
        source = open_source(checkout / "data/birds" / split)
        stored |= {source._content(row) for row in range(len(source))}
    for path in (checkout / "mine").rglob("*.*"):
        small = path.name[:2] != "0."
        assert (path.read_bytes() in stored) == (small and path.suffix != ".bmp"), path


def test_every_class_is_on_both_sides(checkout, succeed, fail):
    for path in sorted((checkout / "mine" / "blau").iterdir())[2:]:
        path.unlink()
    for fraction in ("0.000001", "0.999999"):
        succeed(*words("--val_fraction", fraction))
        for split in ("train", "val"):
            assert set(open_source(checkout / "data/birds" / split).labels) == {0, 1}
    next((checkout / "mine" / "blau").iterdir()).unlink()
    assert "class blau has 1 readable images" in fail(*words())


def test_unreadable_images(checkout, succeed, fail):
    (checkout / "mine" / "blau" / "bad.png").write_bytes(b"no image")
    error = fail(*words())
    assert "mine/blau/bad.png is not a readable image" in error and "--on_error skip" in error
    assert not (checkout / "data").exists()
    assert "1 unreadable images left out (first: blau/bad.png)" in succeed(*words("--on_error", "skip"))


def test_images_that_the_disk_does_not_give_are_never_skipped(checkout, fail):
    (checkout / "mine" / "blau" / "gone.png").symlink_to("nowhere.png")
    error = fail(*words("--on_error", "skip"))
    assert "blau/gone.png was listed but does not exist; restore it, or remove the link" in error
    assert not (checkout / "data").exists()


def test_names_that_are_no_text(checkout, succeed):
    directory = os.fsencode(checkout) + b"/mine/caf\xe9"
    os.makedirs(directory)  # noqa: PTH103 (bytes)
    for name in (b"1.png", b"2\xff.png"):
        Image.new("RGB", (16, 16)).save(os.fsdecode(directory + b"/" + name))
    Path(os.fsdecode(directory + b"/3\xff.png")).write_bytes(b"no image")
    assert "1 unreadable images left out (first: caf\\udce9/3\\udcff.png)" in succeed(*words("--on_error", "skip"))
    assert open_source("data/birds/train").class_names == ["blau", "caf\\udce9", "red bird"]


def test_directories_of_others_are_refused(checkout, succeed, fail):
    succeed(*words())
    (checkout / "data" / "birds" / "LICENSE").write_text("x")
    assert "holds LICENSE, which this command did not write" in fail(*words())


def test_files_that_nobody_edited_follow_the_images_and_options(checkout, succeed):
    succeed(*words())
    files = [checkout / name for name in file_names("birds")]
    before = [path.read_text() for path in files]
    succeed(*words())
    assert [path.read_text() for path in files] == before
    shutil.copy(checkout / "mine/blau/1.v1.jpg", checkout / "mine/blau/more.jpg")
    succeed(*words("--image_size", "32"))
    images, tokenizer, aim = (path.read_text() for path in files)
    assert "image_size: 32" in images and "32x32 pixels become 8x8" in tokenizer and "num_tokens: 64" in aim


@pytest.mark.parametrize("path", file_names("birds"))
def test_edited_files_are_refused_before_anything_changes(checkout, path, succeed, fail):
    succeed(*words())
    (checkout / path).write_bytes((checkout / path).read_bytes() + b"# mine \xff\n")
    manifest = (checkout / "data/birds/train/manifest.json").stat().st_mtime_ns
    error = fail(*words("--image_size", "32"))
    assert f"{path} was edited since `make dataset` made it; rename it" in error
    assert (checkout / "data/birds/train/manifest.json").stat().st_mtime_ns == manifest


def test_shipped_experiments_are_never_overwritten(checkout, fail):
    """`make stages NAME=demo` would otherwise train the demo in silence."""
    shutil.copy(ROOT / "experiments/demo_tokenizer.yaml", checkout / "experiments")
    error = fail("dataset", "mine", "demo", "--image_size", "16")
    assert "experiments/demo_tokenizer.yaml exists and is not one that `make dataset` made" in error
    assert not (checkout / "data").exists()


CASES = [
    (["dataset", "mine", "a/b"], "'a/b'; use letters"),
    (["dataset", "mine", "x", "--image_size", "30"], "multiple of 4"),
    (["dataset", "mine", "x", "--val_fraction", "1"], "above 0 and below 1"),
    (["dataset", "nowhere", "x"], "nowhere does not exist"),
    (["dataset", "mine"], "NAME"),
]


@pytest.mark.parametrize(("arguments", "word"), CASES)
def test_mistakes(checkout, arguments, word, fail):
    assert word in fail(*arguments) and not (checkout / "data").exists()


@pytest.mark.parametrize("stage", ["tokenizer", "aim"])
def test_experiments_are_built(checkout, stage, succeed):
    from cli.test_configs import compose_and_check

    from aim_lightning.cli.build.trainer_cli import AimCLI

    succeed(*words())
    config = compose_and_check(checkout / f"experiments/birds_{stage}.yaml", ("trainer.accelerator", "cpu"))
    with torch.device("meta"):
        built = AimCLI(config)
    network = built.model.network.config
    if stage == "tokenizer":
        built.datamodule.setup("fit")
        built.datamodule.plan_for(1)
        assert built.datamodule.batches_per_epoch >= 1 and network.grid == (4, 4) and network.codebook_size == 512
        assert len(built.datamodule.sets["val"]) >= built.config_init["callbacks"]["reconstructions"].num_images
    else:
        assert (network.num_tokens, network.vocab_size, network.num_classes) == (16, 512, 2)
        assert config.values["tokenizer"] == "runs/birds_tokenizer/main"


def test_images_of_any_size_have_20_different_crops():
    for size in range(2 * DOWNSAMPLING, 300, DOWNSAMPLING):
        assert len(Views("ten_crop", crop_range(size)).sizes(size)) == 2


@pytest.mark.slow
def test_both_stages_train_on_images_of_the_user(checkout, own_signals, succeed):
    """The commands of `make stages`, and of `make validate` for each stage, for two steps each."""
    few = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]
    stage_1 = ["--config", "experiments/birds_tokenizer.yaml", *few, "--data.num_workers", "0"]
    stage_2 = ["--config", "experiments/birds_aim.yaml", *few, "--callbacks.sample_metrics.num_samples", "4"]
    succeed(*words())
    succeed("fit", *stage_1)
    succeed("validate", *stage_1)
    succeed("tokenize", *stage_1)
    assert TokenManifest.load("data/tokens/birds_tokenizer/train").views == 20
    succeed("fit", *stage_2)
    succeed("validate", *stage_2)
    scores = {stage: read_json(f"runs/birds_{stage}/main/results.json", "results") for stage in ("tokenizer", "aim")}
    assert any(name.startswith("rfd_effnet_lite0_") for name in scores["tokenizer"]["metrics"])
    assert "fd_effnet_lite0_4" in scores["aim"]["metrics"]


def save(path: Path, color: object = "red", mode: str = "RGB", side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), color).save(path)


def test_existing_splits_are_kept(checkout, succeed):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            for i in range(count):
                save(checkout / "split" / split / name / f"{i}.png", (i, 7, 9))
    out = succeed(*words(directory="split"))
    assert "splits of the directory: split/train for train, split/test for val" in out
    assert "data/birds: 6 training and 4 validation images, 3 to 3 training images per class" in out
    sources = [open_source(f"data/birds/{split}") for split in ("train", "val")]
    assert [source.labels.tolist() for source in sources] == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1]]
    assert sources[0].class_names == sources[1].class_names == ["a", "b"]


def test_splits_with_other_classes_are_refused(checkout, fail):
    for path in ("train/a/0.png", "train/b/0.png", "val/a/0.png"):
        save(checkout / "split" / path)
    assert "split: label 1 is 'b' in train but no class in val" in fail(*words(directory="split"))


def test_an_imagefolder_with_metadata_keeps_its_labels(checkout, succeed):
    lines = []
    for i in range(20):
        save(checkout / "hf" / "train" / f"{i}.png", (i, 0, 0))
        lines.append(f'{{"file_name": "{i}.png", "label": {i % 2}}}')
    (checkout / "hf" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    succeed(*words(directory="hf"))
    for split in ("train", "val"):
        source = open_source(f"data/birds/{split}")
        assert source.class_names == ["0", "1"]
        for row, label in enumerate(source.labels):
            assert source[row].getpixel((0, 0))[0] % 2 == label


def test_imbalance_and_transparency_are_reported(checkout, succeed):
    for i in range(24):
        save(checkout / "odd" / "many" / f"{i}.png", (i, 0, 0, 255), "RGBA")  # opaque in spite of its alpha channel
    for i in range(2):
        save(checkout / "odd" / "few" / f"{i}.png", (i, 0, 0, 100), "RGBA")
    out = succeed(*words(directory="odd"))
    assert re.search(r"warning: many has \d\d images, few only 1; rare classes are learned badly", out)
    assert "warning: 2 images have transparent pixels, composited on white (--background)" in out
    assert "background" not in Path(file_names("birds")[0]).read_text()


def test_a_background_colours_flattened_images_and_enters_the_experiment(checkout, succeed, fail):
    for i in range(4):
        side = (40, 20)[i % 2]  # large images are flattened to JPEG, small ones keep their bytes
        save(checkout / "clear" / "a" / f"{i}.png", (0, 0, 0, 0), "RGBA", side)
    assert "composited on #2040c0" in succeed(*words("--background", "#2040c0", directory="clear"))
    images = Images(**read_mapping(Path(file_names("birds")[0]), "images")["images"])
    for part in ("train", "val"):
        for image in images.open(part).source:
            assert image.getpixel((5, 5)) == pytest.approx((32, 64, 192), abs=3)
    assert "images.background is 'bleu'" in fail(*words("--background", "bleu", directory="clear"))


def test_images_beyond_the_limit_are_allowed_by_an_option(checkout, monkeypatch, succeed, fail):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    error = fail(*words())
    assert "is too large" in error and "--max_pixels" in error
    succeed(*words("--max_pixels", "100000"))


def test_a_quick_experiment_is_short_and_the_hours_are_estimated(checkout, monkeypatch, succeed):
    measured = SimpleNamespace(seconds=9.0)
    monkeypatch.setattr("aim_lightning.cli.plan.benchmark.measure", create_autospec(measure, return_value=measured))
    out = succeed(*words("--quick", "true", "--estimate", "true"))
    for stage in ("tokenizer", "AiM"):
        assert f"{stage}: about 0.5 hours of training on this machine" in out
    for path in file_names("birds")[1:]:
        text = Path(path).read_text()
        assert "max_steps: 200" in text and "every_n_steps: 100" in text and "val_check_interval: 40" in text
