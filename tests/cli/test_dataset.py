"""One's own pictures: a class-per-folder tree becomes shards and experiments that train."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from aim_lightning.cli import main as cli
from aim_lightning.data.images.sources import open_source
from aim_lightning.data.images.split import name_hash


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A place with the shipped configuration, and 30 + 25 pictures of two classes in several formats."""
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


def dataset(*arguments) -> int:
    return cli.main(["dataset", "mine", "birds", "--image_size", "16", *arguments])


def by_content(folder):
    """Labels by sha256 of the pixels."""
    source = open_source(folder)
    records = [source[row] for row in range(len(source))]
    return {hashlib.sha256(record.image.tobytes()).hexdigest(): record.label for record in records}


def test_pictures_are_split_by_the_hash_of_their_names(checkout, capsys):
    assert dataset("--val_fraction", "0.3") == 0
    train, val = (open_source(checkout / "data/birds" / split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["blau", "red bird"]
    assert len(train) + len(val) == 55 and not by_content("data/birds/train").keys() & by_content("data/birds/val")
    expected = sum(name_hash(path.name) < 0.3 for path in (checkout / "mine").rglob("*.*"))
    assert len(val) == expected and set(val.labels) == {0, 1}
    assert "training and" in (out := capsys.readouterr().out) and "make stages NAME=birds" in out
    large = [record.image.size for record in (train[row] for row in range(len(train))) if min(record.image.size) != 30]
    assert all(size == (33, 32) for size in large)  # shrunk to twice the size that the networks see
    before = by_content("data/birds/val")
    for path in sorted((checkout / "mine" / "blau").iterdir())[::2]:
        path.unlink()
    assert dataset("--val_fraction", "0.3") == 0
    assert by_content("data/birds/val").items() <= before.items()  # nothing changed sides


def test_bytes_are_kept_where_the_shards_allow_them(checkout):
    assert dataset() == 0
    stored = set()
    for split in ("train", "val"):
        source = open_source(checkout / "data/birds" / split)
        stored |= {source._open(row).read() for row in range(len(source))}
    for path in (checkout / "mine").rglob("*.*"):
        small = path.name[:2] != "0."
        assert (path.read_bytes() in stored) == (small and path.suffix != ".bmp"), path


def test_every_class_is_on_both_sides(checkout, capsys):
    for path in sorted((checkout / "mine" / "blau").iterdir())[2:]:
        path.unlink()
    for fraction in ("0.000001", "0.999999"):
        assert dataset("--val_fraction", fraction) == 0
        for split in ("train", "val"):
            assert set(open_source(checkout / "data/birds" / split).labels) == {0, 1}
    next((checkout / "mine" / "blau").iterdir()).unlink()
    assert dataset() == 2 and "class blau has 1 readable pictures" in capsys.readouterr().err


def test_unreadable_pictures(checkout, capsys):
    (checkout / "mine" / "blau" / "bad.png").write_bytes(b"no picture")
    assert dataset() == 2
    error = capsys.readouterr().err
    assert "mine/blau/bad.png is not a readable picture" in error and "--on_error skip" in error
    assert not (checkout / "data").exists() and error.count("\n") == 1
    assert dataset("--on_error", "skip") == 0
    assert "1 unreadable pictures left out (first: blau/bad.png)" in capsys.readouterr().out


def test_folders_of_others_and_edited_experiments_are_left_alone(checkout, capsys):
    assert dataset() == 0 and dataset() == 0
    edited = checkout / "experiments" / "birds_aim.yaml"
    edited.write_text("# mine\n")
    assert dataset() == 0
    assert edited.read_text() == "# mine\n" and "birds_aim.yaml exists and is left" in capsys.readouterr().out
    (checkout / "data" / "birds" / "LICENSE").write_text("x")
    assert dataset() == 2 and "holds LICENSE, which this command did not write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["dataset", "mine", "a/b"], "'a/b'; use letters"),
        (["dataset", "mine", "x", "--image_size", "30"], "multiple of 4"),
        (["dataset", "mine", "x", "--val_fraction", "1"], "between 0 and 1"),
        (["dataset", "nowhere", "x"], "nowhere does not exist"),
        (["dataset", "mine"], "NAME"),
    ],
)
def test_mistakes(checkout, capsys, arguments, word):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not (checkout / "data").exists()


@pytest.mark.parametrize("stage", ["tokenizer", "aim"])
def test_experiments_are_built(checkout, stage):
    from cli.test_configs import compose_and_check

    from aim_lightning.cli.build import AimCLI

    assert dataset() == 0
    document = compose_and_check(checkout / f"experiments/birds_{stage}.yaml", ("trainer.accelerator", "cpu"))
    with torch.device("meta"):
        built = AimCLI(document)
    network = built.model.network.config
    if stage == "tokenizer":
        built.datamodule.setup("fit")
        built.datamodule.plan_for(1)
        assert built.datamodule.batches_per_epoch >= 1 and network.grid == (4, 4) and network.codebook_size == 512
        assert len(built.datamodule.sets["val"]) >= built.config_init["callbacks"]["reconstructions"].num_images
    else:
        assert (network.num_tokens, network.vocab_size, network.num_classes) == (16, 512, 2)
        assert document.values["tokenizer"] == "runs/birds_tokenizer/main"
