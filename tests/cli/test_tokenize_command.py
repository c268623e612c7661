"""Tokenize with a class of one's own, from images to samples by the command line alone; mistakes before any work."""

import numpy as np
import pytest
import torch
from helpers import assert_user_error
from PIL import Image

import aim_lightning
from aim_lightning.data.tokens.format.manifest import TokenManifest
from aim_lightning.pipeline import load_tokenizer
from aim_lightning.pipeline.pixel_decoder import largest_output
from aim_lightning.utils.errors import UserError

MODULE = '''
import torch


class MeanColour(torch.nn.Module):
    """The brightness of each quarter of an image, in 16 levels."""

    def __init__(self, levels: int = 16, side: int = 16) -> None:
        super().__init__()
        self.codebook_size, self.side, self.grid = levels, side, (2, 2)
        self.register_buffer("brightness", torch.linspace(-1, 1, levels))

    @property
    def weights_hash(self) -> str:
        return f"mean-colour-{self.codebook_size}"

    def encode(self, images_BCHW):
        means_BHW = torch.nn.functional.adaptive_avg_pool2d(images_BCHW, self.grid).mean(1)
        return (means_BHW.flatten(1)[..., None] - self.brightness).abs().argmin(-1)

    def decode(self, codes_BL):
        values_BCHW = self.brightness[codes_BL].view(-1, 1, *self.grid).expand(-1, 3, -1, -1)
        return torch.nn.functional.interpolate(values_BCHW, size=(self.side, self.side))


class Half(torch.nn.Module):
    grid = (2, 2)

    def encode(self, images_BCHW):
        return None


class NoModule:
    pass
'''
TOKENIZER = "tokenizer: {class_path: mean_colour_of_tests.MeanColour, init_args: {levels: 16}}\n"
IMAGES = """
images: {{train: {root}/train, val: {root}/val, image_size: 16}}
trainer: {{accelerator: cpu, devices: 1}}
runs_root: {root}/runs
"""
TOKENIZE = """
include: [tokenizer.yaml, images.yaml]
experiment: mine_tokens
data:
  class_path: aim_lightning.data.images.datamodule.ImageDataModule
  init_args: {{images: "${{images}}", global_batch_size: 8, out: {root}/tokens}}
"""
FIT = """
include: [tokenizer.yaml, images.yaml]
experiment: mine
model:
  class_path: aim_lightning.modules.aim.AiMModule
  init_args:
    network: {{d_model: 32, n_layer: 1, vocab_size: 16, num_classes: 2, num_tokens: 4, d_state: 8, headdim: 16}}
    optimizer: {{base_learning_rate: 0.1}}
    global_batch_size: ${{data.init_args.global_batch_size}}
data:
  class_path: aim_lightning.data.tokens.datamodule.TokenDataModule
  init_args: {{path: {root}/tokens, global_batch_size: 8, val_batch_size: 8}}
callbacks:
  grid: {{class_path: aim_lightning.callbacks.logging.image_logging.SampleGrid, init_args: {{classes: 2, columns: 2}}}}
  checkpoints: {{class_path: aim_lightning.callbacks.training.checkpoints.Checkpoints, init_args: {{every_n_steps: 2}}}}
trainer: {{max_steps: 2, val_check_interval: 2, check_val_every_n_epoch: null, enable_progress_bar: false}}
"""
FILES = {"tokenizer": TOKENIZER, "images": IMAGES, "tokenize": TOKENIZE, "fit": FIT}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write images, configurations and the tokenizer's module, and put them on the path."""
    root, rng = tmp_path_factory.mktemp("foreign"), np.random.default_rng(0)
    (root / "mean_colour_of_tests.py").write_text(MODULE)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    for name, text in FILES.items():
        (root / f"{name}.yaml").write_text(text.format(root=root) if name != "tokenizer" else text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield root


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

    with pytest.raises(UserError, match=r"of class mean_colour_of_tests\.MeanColour; pass tokenizer="):
        aim_lightning.load(run)  # a checkpoint runs no code
    tokenizer = load_tokenizer({"class_path": "mean_colour_of_tests.MeanColour"})
    assert aim_lightning.load(run, tokenizer=tokenizer).generate([0, 1]).shape == (2, 3, 16, 16)
    assert largest_output(tokenizer, torch.device("cpu")) == 3 * 16 * 16  # it has no modules inside
    assert tokenizer.brightness.requires_grad is False and not tokenizer.training
    other = {"class_path": "mean_colour_of_tests.MeanColour", "init_args": {"levels": 8}}
    assert_user_error("codes of another tokenizer", aim_lightning.load, run, tokenizer=load_tokenizer(other))


def test_options_of_the_class_are_in_the_help_and_can_be_set(root, succeed):
    text = succeed("fit", "--config", root / "fit.yaml", "--help")
    assert "--tokenizer.levels [int] 16" in text and "--tokenizer.class_path" in text
    assert "levels: 12" in succeed("config", "--config", root / "fit.yaml", "--tokenizer.levels", 12)


CASES = [
    (["--tokenizer.levels", "many"], "tokenizer.init_args.levels is 'many'; expected int"),
    (["--tokenizer.depth", "3"], "tokenizer.init_args.depth is not an option of MeanColour"),
    (["--tokenizer.class_path", "mean_colour_of_tests.Nothing"], "has no class Nothing"),
    (["--tokenizer.class_path", "mean_colour_of_tests.Half", "--tokenizer.init_args", "{}"], "has no decode, codeb"),
    (["--tokenizer.class_path", "mean_colour_of_tests.NoModule", "--tokenizer.init_args", "{}"], "tokenizer: "),
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
