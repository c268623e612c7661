"""Tokenize with a class of the user, from images to samples by the command line alone; mistakes before any work."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import assert_user_error
from PIL import Image

import aim_lightning
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.pipeline.pixel_decoder import largest_output
from aim_lightning.utils.errors import UserError

FILES = sorted((ROOT / "tests/cli/mean_colour").glob("*.yaml"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Create a directory with images and configurations."""
    root, rng = tmp_path_factory.mktemp("foreign"), np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    for file in FILES:
        (root / file.name).write_text(file.read_text().replace("ROOT", str(root)))
    return root


def test_from_images_to_samples(root, succeed, own_signals):
    succeed("tokenize", "--config", root / "tokenize.yaml")
    manifest = TokenManifest.load(root / "tokens" / "train")
    assert (manifest.tokenizer_hash, manifest.codebook_size, manifest.grid) == ("mean-colour-16", 16, (2, 2))
    for file in ("tokenizer.yaml", "fit.yaml"):  # the key alone, or a whole experiment
        assert "no faults" in succeed("shards", "verify", root / "tokens", "--tokenizer", root / file)
    succeed("shards", "preview", root / "tokens", "--tokenizer", root / "tokenizer.yaml", "--num", 4)
    assert Image.open(root / "tokens" / "train" / "preview.png").size[0] > 16

    run = root / "runs" / "mine" / "main"
    succeed("fit", "--config", root / "fit.yaml")
    assert (run / "samples" / "grid.png").exists()
    more = ("--trainer.max_steps", 4, "--allow_changes", "true")
    succeed("fit", "--config", root / "fit.yaml", *more)
    succeed("sample", "--config", root / "fit.yaml", "--num", 2, "--out", root / "out")
    assert len(list((root / "out").glob("cat-*.png"))) == 2

    with pytest.raises(UserError, match=r"of class cli\.mean_colour\.tokenizers\.MeanColour; pass tokenizer="):
        aim_lightning.load(run)  # a checkpoint runs no code
    tokenizer = load_tokenizer({"class_path": "cli.mean_colour.tokenizers.MeanColour"})
    assert aim_lightning.load(run, tokenizer=tokenizer).generate([0, 1]).shape == (2, 3, 16, 16)
    assert largest_output(tokenizer, torch.device("cpu")) == 3 * 16 * 16  # it has no modules inside
    assert tokenizer.brightness.requires_grad is False and not tokenizer.training
    other = {"class_path": "cli.mean_colour.tokenizers.MeanColour", "init_args": {"levels": 8}}
    assert_user_error("codes of another tokenizer", aim_lightning.load, run, tokenizer=load_tokenizer(other))


def test_arguments_of_the_class_need_no_types():
    section = {"class_path": "cli.mean_colour.tokenizers.FromFile", "init_args": {"file": "weights/mine.pt"}}
    assert load_tokenizer(section).file == "weights/mine.pt"


def test_options_of_the_class_are_in_the_help_and_can_be_set(root, succeed):
    text = succeed("fit", "--config", root / "fit.yaml", "--help")
    assert "--tokenizer.levels [int] 16" in text and "--tokenizer.class_path" in text
    assert "levels: 12" in succeed("config", "--config", root / "fit.yaml", "--tokenizer.levels", 12)


CASES = [
    (["--tokenizer.levels", "many"], "tokenizer.init_args.levels is 'many'; expected int"),
    (["--tokenizer.depth", "3"], "tokenizer.init_args.depth is not an option of MeanColour"),
    (["--tokenizer.class_path", "cli.mean_colour.tokenizers.Nothing"], "has no class Nothing"),
    (
        ["--tokenizer.class_path", "cli.mean_colour.tokenizers.Half", "--tokenizer.init_args", "{}"],
        "has no decode, codeb",
    ),
    (["--tokenizer.class_path", "cli.mean_colour.tokenizers.NoModule", "--tokenizer.init_args", "{}"], "tokenizer: "),
]


@pytest.mark.parametrize(("options", "words"), CASES)
def test_mistakes_are_one_line(root, fail, options, words):
    assert words in fail("tokenize", "--config", root / "tokenize.yaml", "--data.out", root / "other", *options)


def test_a_mapping_without_a_class(root, fail):
    (root / "bad.yaml").write_text("tokenizer: {levels: 3}\n")
    files = ("--config", root / "tokenize.yaml", "--config", root / "bad.yaml")
    assert "tokenizer.levels is next to class_path" in fail("tokenize", *files)
    assert "tokenizer has no class_path" in fail("shards", "verify", root, "--tokenizer", root / "bad.yaml")
    error = fail("shards", "verify", root, "--tokenizer", root / "images.yaml")
    assert "images.yaml does not set the key tokenizer" in error and torch.is_grad_enabled()


def test_both_splits_are_tokenized_once(root, succeed, tmp_path):
    words = ("tokenize", "--config", root / "tokenize.yaml", "--data.out", tmp_path, "--views", "center_flip")
    assert f"token shards: {tmp_path}/train and {tmp_path}/val\n" in succeed(*words)
    assert [TokenManifest.load(tmp_path / split).views for split in ("train", "val")] == [2, 1]
    assert f"token shards: {tmp_path}/train and {tmp_path}/val (already complete)\n" in succeed(*words)


def test_the_section_gives_the_defaults_and_the_command_line_wins(root, succeed, tmp_path):
    (tmp_path / "x.yaml").write_text("tokenize: {views: ten_crop, crop_range: [1.3, 1.2], rows_per_shard: 12}\n")
    words = ("tokenize", "--config", root / "tokenize.yaml", "--config", tmp_path / "x.yaml", "--data.out")
    for options, views, rows in (((), 20, [12, 4]), (("--views", "center_flip", "--rows_per_shard", 14), 2, [14, 2])):
        succeed(*words, tmp_path / str(views), *options)
        manifest = TokenManifest.load(tmp_path / str(views) / "train")
        assert (manifest.views, [shard.rows for shard in manifest.shards]) == (views, rows)


SECTIONS = [
    ("{view: center}", "tokenize.view is not an option of TokenizeSection; did you mean views?"),
    ("{batch_size: many}", "tokenize.batch_size is 'many'; expected int"),
    ("{batch_size: 0}", "tokenize.batch_size is 0; it must be 1 or more"),
    ("{views: ten}", "x.yaml: tokenize.views is 'ten'; use one of center, center_flip, ten_crop"),
]


@pytest.mark.parametrize(("section", "words"), SECTIONS)
def test_errors_in_the_section_are_one_line(root, fail, tmp_path, section, words):
    (tmp_path / "x.yaml").write_text(f"tokenize: {section}\n")
    files = ("--config", root / "tokenize.yaml", "--config", tmp_path / "x.yaml")
    assert words in fail("tokenize", *files, "--data.out", tmp_path / "out") and not (tmp_path / "out").exists()


def test_a_foreign_val_directory_stops_before_anything_is_written(root, fail, tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "of_others.tar").write_bytes(b"")
    error = f"error: {tmp_path}/val holds tar files that tokenize did not write; set data.out to a new directory\n"
    assert fail("tokenize", "--config", root / "tokenize.yaml", "--data.out", tmp_path) == error
    assert not (tmp_path / "train").exists()
